"""Answers in the shape of OpenAI's responses: items of text and of calls, whole or event by event."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from services.encoders import EventStream
from services.engine.events import Done, Event
from services.errors import ServiceError
from services.schema import envelope
from services.text.answers import END, chat_token
from services.text.pieces import Call, Piece, Token
from services.text.schema import ResponseJob, ResponseRequest


class Reply:
    """A response as it grows."""

    def __init__(self, request: ResponseRequest, job: ResponseJob) -> None:
        """Begin one, which repeats what was asked for."""
        self._head = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": job.model,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "temperature": job.temperature,
            "top_p": job.top_p,
            "metadata": request.metadata or {},
            "parallel_tool_calls": job.parallel_tool_calls,
            "tool_choice": dumped(request.tool_choice) or "auto",
            "tools": [dumped(tool) for tool in request.tools or ()],
            "text": dumped(request.text) or {"format": {"type": "text"}},
            "previous_response_id": None,
            "store": False,
        }
        self.items: list[dict[str, Any]] = []

    def shown(self, done: Done | None = None) -> dict[str, Any]:
        """Return the response: on its way, or as it is when the model is done."""
        if done is None:
            ending: dict[str, Any] = {"status": "in_progress", "incomplete_details": None, "usage": None}
        elif done.finish_reason == "length":
            ending = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        else:
            ending = {"status": "completed", "incomplete_details": None}
        if done is not None:
            ending["usage"] = usage(done.usage)
        return {**self._head, **ending, "error": None, "output": list(self.items)}


def message_item(name: str, text: str, tokens: Sequence[Token], status: str) -> dict[str, Any]:
    """An item of text."""
    return {
        "type": "message",
        "id": name,
        "role": "assistant",
        "status": status,
        "content": [text_part(text, tokens)] if status != "in_progress" else [],
    }


def text_part(text: str, tokens: Sequence[Token] = ()) -> dict[str, Any]:
    """What a message consists of."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": [chat_token(token) for token in tokens],
    }


def call_item(name: str, call: Call, arguments: str, status: str) -> dict[str, Any]:
    """An item of a call."""
    return {
        "type": "function_call",
        "id": name,
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
        "status": status,
    }


class ReplyEncoder:
    """A whole response, as JSON."""

    media_type, streams = "application/json", False

    def __init__(self, reply: Reply) -> None:
        """Collect for `reply`."""
        self._stream = ReplyStream(reply)
        self._reply = reply

    def add(self, data: Piece) -> bytes:
        """Collect."""
        self._stream.add(data)
        return b""

    def close(self, done: Done) -> bytes:
        """Return the document."""
        self._stream.close(done)
        return json.dumps(self._reply.shown(done)).encode()

    def abort(self) -> None:
        """Hold nothing."""


class ReplyStream(EventStream):
    """A response as server-sent events, with `[DONE]` behind the last, or an error and without it."""

    def __init__(self, reply: Reply) -> None:
        """Stream `reply`."""
        self._reply = reply
        self._num_events = 0
        self._name: str | None = None  # of the message that is being written
        self._text = ""
        self._tokens: list[Token] = []

    def tell(self, event: Event | ServiceError) -> bytes:
        """Tell of errors alone."""
        if not isinstance(event, ServiceError):
            return b""
        error = envelope(event.status, event.message, event.code, event.param).error.model_dump()
        return self._event("error", **{**error, "error": error})

    def add(self, data: Piece) -> bytes:
        """Take the next of the answer."""
        return b"".join(self._added(data))

    def close(self, done: Done) -> bytes:
        """End the stream."""
        name = "response.incomplete" if done.finish_reason == "length" else "response.completed"
        ended = list(self._begun())
        if not self._reply.items and self._name is None:
            ended += self._open()  # a response has an item, if an empty one
        ended += self._closed("incomplete" if done.finish_reason == "length" else "completed")
        return b"".join(ended) + self._event(name, response=self._reply.shown(done)) + END

    def abort(self) -> None:
        """Hold nothing."""

    def _added(self, data: Piece) -> Iterator[bytes]:
        yield from self._begun()
        if data.text or (data.tokens and self._name is not None):  # tokens alone may be those of a call
            if self._name is None:
                yield from self._open()
            self._text += data.text
            self._tokens += data.tokens
            yield self._event(
                "response.output_text.delta",
                **self._place(),
                delta=data.text,
                logprobs=[chat_token(token) for token in data.tokens],
            )
        for call in data.calls:
            yield from self._closed("completed")
            yield from self._called(call)

    def _begun(self) -> Iterator[bytes]:
        if not self._num_events:
            yield self._event("response.created", response=self._reply.shown())
            yield self._event("response.in_progress", response=self._reply.shown())

    def _open(self) -> Iterator[bytes]:
        self._name, self._text, self._tokens = f"msg_{uuid4().hex}", "", []
        item = message_item(self._name, "", (), "in_progress")
        yield self._event("response.output_item.added", output_index=len(self._reply.items), item=item)
        yield self._event("response.content_part.added", **self._place(), part=text_part(""))

    def _closed(self, status: str) -> Iterator[bytes]:
        if self._name is None:
            return
        item = message_item(self._name, self._text, self._tokens, status)
        (part,) = item["content"]
        place = self._place()
        yield self._event("response.output_text.done", **place, text=self._text, logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=place["output_index"], item=item)
        self._reply.items.append(item)
        self._name = None

    def _called(self, call: Call) -> Iterator[bytes]:
        name, index = f"fc_{uuid4().hex}", len(self._reply.items)
        place = {"item_id": name, "output_index": index}
        begun = call_item(name, call, "", "in_progress")
        item = call_item(name, call, call.arguments, "completed")
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._event("response.output_item.done", output_index=index, item=item)
        self._reply.items.append(item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._name, "output_index": len(self._reply.items), "content_index": 0}

    def _event(self, kind: str, /, **data: Any) -> bytes:
        body = {**data, "type": kind, "sequence_number": self._num_events}
        self._num_events += 1
        return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()


def usage(counted: Mapping[str, float]) -> dict[str, Any]:
    """Say what was used, in the words of responses."""
    read, written = counted["prompt_tokens"], counted["completion_tokens"]
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": counted["cached_tokens"]},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def dumped(value: Any) -> Any:
    """Return a part of the request as it was sent."""
    return value.model_dump(by_alias=True, exclude_none=True) if hasattr(value, "model_dump") else value
