"""Answers in the shapes of OpenAI's API: chat completions and completions, whole or as they are written."""

import json
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from services.encoders import EventStream
from services.engine.events import Done, Event
from services.errors import ServiceError
from services.schema import envelope
from services.text.pieces import Call, Piece, Token

END = b"data: [DONE]\n\n"


class TextEncoder:
    """The bare text of the only answer, as it is written."""

    media_type, streams = "text/plain", True

    def add(self, data: Piece) -> bytes:
        """Take whole characters."""
        return data.text.encode()

    def close(self, done: Done) -> bytes:
        """Return nothing."""
        return b""

    def abort(self) -> None:
        """Hold nothing."""


class Shape(ABC):
    """What a document and the chunks of a stream have in common."""

    prefix: str
    document: str
    chunk: str

    def __init__(self, model: str) -> None:
        """Begin an answer of `model`."""
        self._head = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": model}

    def head(self, name: str) -> dict[str, Any]:
        """What every object begins with."""
        return {**self._head, "object": name}

    @abstractmethod
    def choice(self, piece: Piece, *, is_chunk: bool, is_first: bool) -> dict[str, Any]:
        """One answer, or the next of it."""


class ChatShape(Shape):
    """Chat completions."""

    prefix, document, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, piece: Piece, *, is_chunk: bool, is_first: bool) -> dict[str, Any]:
        """A message, or what is added to it."""
        said: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if piece.text or (is_first and not piece.calls):
            said["content"] = piece.text
        if piece.calls:
            said["tool_calls"] = [chat_call(call, is_chunk=is_chunk) for call in piece.calls]
            if not is_chunk:
                said.setdefault("content", None)
        return {
            "index": piece.index,
            "delta" if is_chunk else "message": said,
            "logprobs": {"content": [chat_token(token) for token in piece.tokens]} if piece.tokens else None,
            "finish_reason": piece.finish_reason,
        }


class CompletionShape(Shape):
    """Completions."""

    prefix, document, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str) -> None:
        """Begin an answer of `model`."""
        super().__init__(model)
        self._offsets: dict[int, int] = defaultdict(int)  # of the next tokens

    def choice(self, piece: Piece, *, is_chunk: bool, is_first: bool) -> dict[str, Any]:
        """A text, or what is added to it."""
        logprobs = None
        if piece.tokens:  # text may come later than they do: a stop string may have begun
            logprobs = completion_tokens(piece.tokens, self._offsets[piece.index])
            self._offsets[piece.index] += sum(len(token.text) for token in piece.tokens)
        return {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}


class DocumentEncoder:
    """A whole answer, as JSON."""

    media_type, streams = "application/json", False

    def __init__(self, shape: Shape) -> None:
        """Collect for `shape`."""
        self._shape = shape
        self._pieces: dict[int, list[Piece]] = defaultdict(list)

    def add(self, data: Piece) -> bytes:
        """Collect."""
        self._pieces[data.index].append(data)
        return b""

    def close(self, done: Done) -> bytes:
        """Return the document."""
        choices = [
            self._shape.choice(whole(pieces), is_chunk=False, is_first=True)
            for _, pieces in sorted(self._pieces.items())
        ]
        head = self._shape.head(self._shape.document)
        return json.dumps({**head, "choices": choices, "usage": usage(done.usage)}).encode()

    def abort(self) -> None:
        """Hold nothing."""


class ChunkEncoder(EventStream):
    """An answer as server-sent chunks, with `[DONE]` behind the last, or an error and without it."""

    def __init__(self, shape: Shape, *, includes_usage: bool) -> None:
        """Stream in `shape`."""
        self._shape = shape
        self._includes_usage = includes_usage
        self._begun: set[int] = set()

    def tell(self, event: Event | ServiceError) -> bytes:
        """Tell of errors alone."""
        if not isinstance(event, ServiceError):
            return b""
        return framed(envelope(event.status, event.message, event.code, event.param).model_dump())

    def add(self, data: Piece) -> bytes:
        """Take the next of one of the answers.

        Why it ended comes behind its calls: the SDK tells of a call that is done only then.
        """
        if data.calls and data.finish_reason is not None:
            return self._next(replace(data, finish_reason=None)) + self._next(
                Piece(data.index, "", finish_reason=data.finish_reason)
            )
        return self._next(data)

    def _next(self, piece: Piece) -> bytes:
        is_first = piece.index not in self._begun
        self._begun.add(piece.index)
        return self._framed([self._shape.choice(piece, is_chunk=True, is_first=is_first)])

    def close(self, done: Done) -> bytes:
        """End the stream."""
        return (self._framed([], usage(done.usage)) if self._includes_usage else b"") + END

    def abort(self) -> None:
        """Hold nothing."""

    def _framed(self, choices: Sequence[Mapping[str, Any]], used: Mapping[str, Any] | None = None) -> bytes:
        chunk = {**self._shape.head(self._shape.chunk), "choices": choices}
        return framed({**chunk, "usage": used} if self._includes_usage else chunk)


def framed(data: Mapping[str, Any]) -> bytes:
    """Encode an unnamed event of the text/event-stream format."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def whole(pieces: Sequence[Piece]) -> Piece:
    """Put the pieces of an answer together."""
    tokens = [token for piece in pieces for token in piece.tokens]
    calls = [call for piece in pieces for call in piece.calls]
    text = "".join(piece.text for piece in pieces)
    return Piece(pieces[-1].index, text, tokens, calls, pieces[-1].finish_reason)


def usage(counted: Mapping[str, float]) -> dict[str, Any]:
    """Say what was used as OpenAI does."""
    prompt, completion = counted["prompt_tokens"], counted["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": counted["cached_tokens"]},
    }


def chat_call(call: Call, *, is_chunk: bool) -> dict[str, Any]:
    """A call as chat completions show it."""
    shown = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return {"index": call.number, **shown} if is_chunk else shown


def chat_token(token: Token) -> dict[str, Any]:
    """A token as chat completions show it."""
    likeliest = [{"token": one.text, "bytes": one.bytes, "logprob": finite(one.logprob)} for one in token.likeliest]
    return {
        "token": token.text,
        "bytes": token.bytes,
        "logprob": finite(token.logprob),
        "top_logprobs": likeliest,
    }


def completion_tokens(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """Tokens as completions show them; the first begins `offset` characters into the text."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else {key(one): finite(one.logprob) for one in (*token.likeliest, token)}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def key(token: Token) -> str:
    """Name a token by its text, or by its bytes where they are no whole character."""
    if token.bytes is None or "\ufffd" not in token.text:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def finite(logprob: float | None) -> float | None:
    """JSON knows no infinity: what cannot be has the lowest number that OpenAI gives."""
    return None if logprob is None else max(logprob, -9999.0)
