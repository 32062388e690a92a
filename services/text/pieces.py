"""What the text model hands on; needs no library."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A token with its probabilities, as it is told.

    Args:
        bytes: its UTF-8, whole or not; None where the tokenizer does not say.
        logprob: natural logarithm of its probability; None of a prompt's first, which nothing is known about.
        likeliest: the same of the likeliest tokens at its place.
    """

    text: str
    bytes: list[int] | None
    logprob: float | None
    likeliest: Sequence["Token"] = ()


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Args:
        number: of the answer's calls, from 0.
        arguments: JSON.
    """

    number: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Piece:
    """Some text of one of the answers, whole calls, and why that one ended, if it did."""

    index: int
    text: str
    tokens: Sequence[Token] = ()
    calls: Sequence[Call] = ()
    finish_reason: str | None = None
