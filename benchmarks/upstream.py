"""A model server that does nothing, fast: `python -m benchmarks.upstream PORT`; OpenAI's chat completions."""

import asyncio
import json
import sys
from typing import cast

import uvloop

NUM_CHUNKS = 200  # of a stream
PACE = 0.002  # seconds between two, where the body says "paced"
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "It is four. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 80, "total_tokens": 90},
    }
).encode()


def chunk(number: int) -> bytes:
    """Return an event, in HTTP's chunked coding."""
    delta = {"role": "assistant", "content": f"word{number:04d} "}
    end = "stop" if number == NUM_CHUNKS - 1 else None
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "delta": delta, "finish_reason": end}],
    }
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


JSON_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
    + str(len(COMPLETION)).encode()
    + b"\r\n\r\n"
    + COMPLETION
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKS = [chunk(number) for number in range(NUM_CHUNKS)]
STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Server(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._read = b""
        self._transport: asyncio.Transport | None = None
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Stop streaming."""
        if self._stream:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._read += data
        head, found, rest = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if len(rest) >= length:
            body, self._read = rest[:length], rest[length:]
            self._answer(body.replace(b" ", b""))

    def _answer(self, body: bytes) -> None:
        assert self._transport is not None  # noqa: S101  it is connected
        if b'"stream":true' in body:
            self._stream = asyncio.create_task(self._send_stream(self._transport, paced=b"paced" in body))
        else:
            self._transport.write(JSON_ANSWER)

    async def _send_stream(self, transport: asyncio.Transport, *, paced: bool) -> None:
        transport.write(STREAM_HEAD)
        for event in CHUNKS:
            transport.write(event)
            await asyncio.sleep(PACE if paced else 0)
        transport.write(STREAM_END)


async def main(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
