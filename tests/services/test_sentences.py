"""Splitting a text to speak: nothing gets lost, and no piece is too long to be said."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.audio.sentences import LONGEST, split_sentences

MARKS = st.text(alphabet=".!?\u2026\"')]\u3002\uff01\uff1f,; \n\tab1", max_size=1000)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Hello.", ["Hello."]),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "go." Then left.', ['He said "go."', "Then left."]),
        ("Really?! Yes\u2026 (No.) Well.", ["Really?!", "Yes\u2026", "(No.)", "Well."]),
        ("Pi is 3.14 and e is 2.71", ["Pi is 3.14 and e is 2.71"]),
        ("see example.org for more", ["see example.org for more"]),
        ("first line\nsecond line\n\nthird", ["first line", "second line", "third"]),
        ("\u4f60\u597d\u3002\u518d\u89c1\uff01", ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"]),
        ("  spaces  ", ["spaces"]),
        ("no end", ["no end"]),
        ("...", ["..."]),
    ],
)
def test_a_text_is_cut_after_its_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_a_long_sentence_is_cut_after_a_comma() -> None:
    first, second = "word " * 30 + "end,", "and " * 30
    assert split_sentences(f"{first} {second}") == [first.strip(), second.strip()]


def test_a_long_sentence_without_commas_is_cut_at_a_blank() -> None:
    pieces = split_sentences("word " * 100)

    assert " ".join(pieces) == ("word " * 100).strip()
    assert all(piece.endswith("word") for piece in pieces)


def test_a_long_word_is_cut_anywhere() -> None:
    assert [len(piece) for piece in split_sentences("a" * 450)] == [LONGEST, LONGEST, 50]


@settings(deadline=None)
@given(text=st.one_of(st.text(max_size=1000), MARKS))
def test_nothing_but_blanks_gets_lost(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@settings(deadline=None)
@given(text=st.one_of(st.text(max_size=1000), MARKS))
@example(text="word  " * 100)
def test_every_piece_can_be_said(text: str) -> None:
    for piece in split_sentences(text):
        assert piece == piece.strip()
        assert 1 <= len(piece) <= LONGEST


@pytest.mark.parametrize("unit", [".", "!?", ".)", '."', "a", "\n", " ", ", ", "a. "])
def test_no_text_makes_the_splitter_backtrack(unit: str) -> None:
    assert split_sentences("x" + unit * 4096)  # with backtracking, half a second of the engine's thread and more
