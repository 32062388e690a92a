"""Tokens to text: characters are never torn, and a stop string never shows, however it is cut into tokens."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Writer:
    """Writes one answer, releasing text as soon as it can no longer turn into a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        """Begin.

        Args:
            tokenizer: the library's, with a Rust backend.
            stops: the first of them ends the text, and is not part of it.
        """
        self._tokenizer = tokenizer
        self._stops = stops
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._num_decoded = 0  # characters
        self._held = ""
        self.is_stopped = False

    @property
    def num_released(self) -> int:
        """Characters that are out."""
        return self._num_decoded - len(self._held)

    @property
    def num_decoded(self) -> int:
        """Characters of all tokens so far; those that are not whole do not count."""
        return self._num_decoded

    def add(self, token: int) -> str:
        """Take a token and return what is certain now."""
        self._tokens.append(token)
        return self._release(self._stream.step(self._tokenizer.backend_tokenizer, token) or "")

    def finish(self) -> str:
        """Return what is left, as no token follows; what is not a whole character becomes U+FFFD."""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        text = self._release(whole[self._num_decoded :])
        rest, self._held = self._held, ""
        return text if self.is_stopped else text + rest

    def _release(self, text: str) -> str:
        self._num_decoded += len(text)
        self._held += text
        found = min((place for stop in self._stops if (place := self._held.find(stop)) >= 0), default=None)
        if found is not None:
            self.is_stopped = True
            text, self._held = self._held[:found], ""
            return text
        certain = len(self._held) - max((overlap(self._held, stop) for stop in self._stops), default=0)
        text, self._held = self._held[:certain], self._held[certain:]
        return text


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


class Vocabulary:
    """Single tokens as text and as bytes, as log probabilities show them."""

    def __init__(self, tokenizer: Any) -> None:
        """Read the tokenizer's alphabet."""
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        """The token by itself; what is no whole character shows as U+FFFD."""
        return str(self._tokenizer.decode([token]))

    def bytes(self, token: int) -> list[int] | None:
        """Its UTF-8, whole or not; None where the tokenizer does not say."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if len(piece) == 6 and piece.startswith("<0x"):
            return [int(piece[1:5], 16)]
        if self._is_byte_level and all(letter in BYTES for letter in piece):
            return [BYTES[letter] for letter in piece]
        text = self.text(token)
        return None if "\ufffd" in text else list(text.encode())

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
