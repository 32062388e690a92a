"""Tokens to text: characters are never torn, and a stop string never shows, however it is cut into tokens."""

from collections.abc import Sequence
from typing import Any

NO_CHARACTER = "\ufffd"
SPACE = "\u2581"  # in the pieces of SentencePiece
MAX_HELD = 32  # tokens; what is no character by then will not become one


class Writer:
    """Writes one answer, releasing text as soon as it can no longer turn into a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], context: Sequence[int] = ()) -> None:
        """Begin.

        Args:
            tokenizer: the library's.
            stops: the first of them ends the text, and is not part of it.
            context: the tokens before, where the text goes on from theirs: some tokenizers drop the first space else.
        """
        self._tokenizer = tokenizer
        self._stops = stops
        self._tokens = list(context[-4:])
        if self._text(self._tokens).endswith(NO_CHARACTER):  # what makes it whole would make it shorter
            self._tokens = []
        self._begin, self._end = 0, len(self._tokens)  # the last tokens that became text
        self._held = ""
        self.num_decoded = 0  # characters of all tokens so far; those that are not whole do not count
        self.num_released = 0  # characters that are out
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Take a token and return what is certain now."""
        self._tokens.append(token)
        return self._release(self._decoded(is_last=False))

    def finish(self) -> str:
        """Return what is left, as no token follows; what is not a whole character becomes U+FFFD."""
        text = self._release(self._decoded(is_last=True))
        if self.is_stopped:
            return text
        rest, self._held = self._held, ""
        self.num_released += len(rest)
        return text + rest

    def _decoded(self, *, is_last: bool) -> str:
        """Return the characters that the newest tokens make whole.

        They are decoded together with those before: what a token looks like depends on its neighbours.
        """
        before = self._text(self._tokens[self._begin : self._end])
        text = self._text(self._tokens[self._begin :])
        is_whole = not text.endswith(NO_CHARACTER) or is_last or len(self._tokens) - self._end > MAX_HELD
        if len(text) <= len(before) or not is_whole:
            return ""
        self._begin, self._end = self._end, len(self._tokens)
        return text[len(before) :]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _release(self, text: str) -> str:
        self.num_decoded += len(text)
        self._held += text
        found = min((place for stop in self._stops if (place := self._held.find(stop)) >= 0), default=None)
        if found is not None:
            self.is_stopped = True
            text, self._held = self._held[:found], ""
        else:
            certain = len(self._held) - max((overlap(self._held, stop) for stop in self._stops), default=0)
            text, self._held = self._held[:certain], self._held[certain:]
        self.num_released += len(text)
        return text


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


class Vocabulary:
    """Single tokens as text and as bytes, as log probabilities show them."""

    def __init__(self, tokenizer: Any) -> None:
        """Read the tokenizer's alphabet."""
        self._tokenizer = tokenizer
        self._numbers = frozenset(tokenizer.get_vocab().values())
        self.special = frozenset(tokenizer.all_special_ids)  # what the tokenizer may put around texts

    def missing(self, size: int) -> Sequence[int]:
        """Return the numbers below `size` that are no token: models have scores for them where theirs are padded."""
        return sorted(set(range(size)) - self._numbers)

    def text(self, token: int) -> str:
        """The token by itself; what is no whole character shows as U+FFFD, and what is no token as nothing."""
        if token not in self._numbers:  # which may be larger than the tokenizer can bear
            return ""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if SPACE in piece:  # at the beginning of a text, decoding would drop it
            return str(piece).replace(SPACE, " ")
        return str(self._tokenizer.decode([token]))

    def texts(self, tokens: Sequence[int]) -> str:
        """Many, as they follow each other; none is left out."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def bytes(self, token: int) -> list[int] | None:
        """Its UTF-8, whole or not; None where the tokenizer does not say."""
        if token not in self._numbers:
            return None
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if len(piece) == 6 and piece.startswith("<0x"):
            return [int(piece[1:5], 16)]
        if self._is_byte_level and all(letter in BYTES for letter in piece):
            return [BYTES[letter] for letter in piece]
        text = self.text(token)
        return None if NO_CHARACTER in text else list(text.encode())

    @property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in str(self._tokenizer.backend_tokenizer.decoder)


def _byte_letters() -> dict[str, int]:
    """What byte-level tokenizers write for each byte: itself where it is printable, else a letter from 256 on.

    Source: Radford et al., Language models are unsupervised multitask learners, 2019, and its published code.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_letters()
