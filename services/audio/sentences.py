"""Splits a text into what a speech model can say in one go."""

import re

# A sentence ends at its mark (with closing quotes) before a blank, at a line break, or at a CJK mark, which needs no
# blank: the ideographic full stop and the full-width ! and ?. (`++` and `*+` never give back: no text takes long.)
SENTENCE = re.compile(r".+?(?:[.!?\u2026]++[\"'\u201d\u2019)\]]*+(?=\s)|[\u3002\uff01\uff1f]+|\n+|$)", re.DOTALL)
LONGEST = 200  # characters: about 13 s of speech, more than which Bark does not say in one go


def split_sentences(text: str) -> list[str]:
    """Cut `text` after its sentences, and sentences that are too long at blanks; nothing but blanks gets lost."""
    sentences = (match.group().strip() for match in SENTENCE.finditer(text))
    return [piece for sentence in sentences if sentence for piece in shorten(sentence)]


def shorten(sentence: str) -> list[str]:
    """Cut a sentence into pieces of at most `LONGEST` characters: after a comma, else at a blank, else anywhere."""
    pieces = []
    while len(sentence) > LONGEST:
        head = sentence[:LONGEST]
        cut = max(head.rfind(", "), head.rfind("; ")) + 1 or max(head.rfind(" "), 0) or LONGEST
        pieces.append(sentence[:cut].strip())
        sentence = sentence[cut:].strip()
    return [*pieces, sentence]
