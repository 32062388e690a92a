"""The tokenizers, each of its architecture's own kind; each knows its whole alphabet and few words or none."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, CLIPTokenizer, PreTrainedTokenizerFast, T5Tokenizer

MAX_CONTEXT = 2048  # tokens of a chat
MAX_SPEECH = 256  # tokens of a text to speak
MAX_PROMPT = 77  # tokens of a prompt to draw
MAX_CAPTION = 32  # tokens of what is said about a picture of shapes
MAX_SCENE = 512  # tokens of a prompt to film

SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
CHAT_TEMPLATE = (  # TinyLlama-1.1B-Chat's
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
WORDS = (
    "a model answers with the words it has learned and this one has learned only these few so that it speaks at once",
    "the quick brown fox jumps over the lazy dog while you and I make pictures sounds films and things of clay",
)


def chat_tokenizer(
    texts: Iterable[str] = WORDS, size: int = 30_000, context: int = MAX_CONTEXT
) -> PreTrainedTokenizerFast:
    """Return Llama's conventions (a leading `<s>`, padding on the left) over byte-level BPE, each digit by itself.

    Args:
        texts: what it is made of.
        size: tokens that it has at most; it has fewer where there is nothing left to join.
        context: tokens that a chat may have.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=_byte_letters(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **SPECIAL_TOKENS,
        padding_side="left",
        model_max_length=context,
        chat_template=CHAT_TEMPLATE,
    )


def speech_tokenizer() -> BertTokenizer:
    """Return WordPiece over single letters: what ISO 8859-1 prints, so English and German at least."""
    letters = _latin_letters()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    return BertTokenizer(vocab=_numbered(pieces), do_lower_case=False, model_max_length=MAX_SPEECH)


def letter_tokenizer(letters: str, longest: int) -> PreTrainedTokenizerFast:
    """Return a token for each of these letters and one for a gap: all else is a gap, and gaps in a row are one.

    Capitals and accents are lost. Bark's own class would drop the blanks.
    """
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    pieces = [*special.values(), *letters, " "]
    spelling = Tokenizer(models.WordLevel(_numbered(pieces), special["unk_token"]))
    plain = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace("ß", "ss")]
    gaps = [normalizers.Replace(Regex(f"[^{letters}]+"), " "), normalizers.Strip()]
    spelling.normalizer = normalizers.Sequence([*plain, *gaps])
    spelling.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=spelling, **special, model_max_length=longest)


def prompt_tokenizer() -> CLIPTokenizer:
    """Return CLIP's byte-level BPE without any merge: a token for each byte."""
    letters = _byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab=_numbered(pieces), merges=[], model_max_length=MAX_PROMPT)


def caption_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Return CLIP's byte-level BPE with a token for each of these words; others are spelt."""
    merges = _merges(words)
    letters = _byte_letters()
    joined = dict.fromkeys("".join(pair) for pair in merges)
    pieces = [*letters, *(letter + "</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    made: Any = CLIPTokenizer  # its own hints say that merges are texts; it takes pairs
    tokenizer: CLIPTokenizer = made(vocab=_numbered(pieces), merges=merges, model_max_length=MAX_CAPTION)
    return tokenizer


def film_tokenizer(words: Iterable[str] = ()) -> T5Tokenizer:
    """Return T5's unigrams: letters that ISO 8859-1 prints, a mark where a word begins, and these words."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -3.0) for letter in _latin_letters()]  # the natural logarithm of how likely each is
    whole = [(f"\u2581{word}", -4.0) for word in dict.fromkeys(words)]
    return T5Tokenizer(vocab=[*special, ("\u2581", -2.0), *letters, *whole], extra_ids=0, model_max_length=MAX_SCENE)


def story_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return T5's unigrams over these words and single letters; capitals and punctuation are lost.

    T5's own class would keep them: it makes its normalisation anew where it is loaded.
    """
    unigrams = film_tokenizer(words)
    backend = unigrams.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]+"), " ")])
    special = {"unk_token": unigrams.unk_token, "eos_token": unigrams.eos_token, "pad_token": unigrams.pad_token}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, model_max_length=MAX_SCENE)


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Join the pair that is seen most often, of equals the first by its letters, until each word is one piece.

    The library's trainer takes any of equals: what went on from a stopped training would read other numbers.
    """
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for word in spelt for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [_joined(word, best) for word in spelt]
    return merges


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _latin_letters() -> list[str]:
    return [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x100))]


def _byte_letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}
