"""Calls of tools in what a model writes: `<tool_call>{"name": …, "arguments": …}</tool_call>`, as Hermes does."""

import json
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import NoReturn
from uuid import uuid4

from services.text.pieces import Call
from services.text.writing import overlap

BEGIN, END = "<tool_call>", "</tool_call>"


class CallReader:
    """Takes text as it is written, and tells plain text from calls."""

    def __init__(self, names: Collection[str]) -> None:
        """Begin outside of any call; what calls none of `names` is text."""
        self._names = names
        self._held = ""
        self._is_inside = self._is_behind_call = False
        self.num_calls = 0

    def add(self, text: str) -> Iterator[str | Call]:
        """Yield what is certain by now: text, and calls that are whole."""
        self._held += text
        while True:
            mark = END if self._is_inside else BEGIN
            place = self._held.find(mark)
            if place < 0:
                break
            before, self._held = self._held[:place], self._held[place + len(mark) :]
            yield from self._call(before) if self._is_inside else self._text(before)
            self._is_inside = not self._is_inside
        if not self._is_inside:
            certain = len(self._held) - overlap(self._held, BEGIN)
            text, self._held = self._held[:certain], self._held[certain:]
            yield from self._text(text)

    def finish(self) -> Iterator[str | Call]:
        """Yield the rest: a call that was begun and is not whole is text."""
        yield from self._text((BEGIN if self._is_inside else "") + self._held)

    def _text(self, text: str) -> Iterator[str]:
        if self._is_behind_call:
            text = text.lstrip()
        if text:
            self._is_behind_call = False
            yield text

    def _call(self, written: str) -> Iterator[str | Call]:
        try:
            told = members(written)
            name, arguments = json.loads(told["name"]), told["arguments"]
            if name not in self._names or not arguments.startswith("{"):
                raise KeyError(name)
        except (ValueError, KeyError, TypeError, RecursionError):  # it is none: the model's words as they are
            yield from self._text(f"{BEGIN}{written}{END}")
            return
        yield Call(self.num_calls, f"call_{uuid4().hex[:24]}", name, arguments)
        self.num_calls += 1
        self._is_behind_call = True


def refuse(constant: str) -> NoReturn:
    """Refuse what Python reads as a number and JSON does not know."""
    raise ValueError(f"{constant} is not JSON")


STRICT = json.JSONDecoder(parse_constant=refuse, parse_int=Decimal)  # int() refuses long numbers
SPACES = " \t\n\r"


def members(document: str) -> Mapping[str, str]:
    """Return the values of a JSON object, each as it is written: reading it would round its numbers.

    Raises:
        ValueError: it is no JSON object.
        RecursionError: it is nested too deeply.
    """
    if not isinstance(STRICT.decode(document), dict):
        raise ValueError("not an object")
    rest = document.strip(SPACES)[1:].lstrip(SPACES)
    found = {}
    while not rest.startswith("}"):
        name, length = STRICT.raw_decode(rest)
        rest = rest[length:].lstrip(SPACES)[1:].lstrip(SPACES)  # behind the colon
        _, length = STRICT.raw_decode(rest)
        found[name], rest = rest[:length], rest[length:].lstrip(SPACES)
        rest = rest.removeprefix(",").lstrip(SPACES)
    return found
