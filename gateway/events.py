"""Server-sent events: how one is written, and a stream of them that proxies do not cut."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

SILENCE_SECONDS = 15.0  # on a connection, which proxies would cut after 30 to 60
STILL_HERE = b": still here\n\n"  # a comment, which clients pass over
END = b"data: [DONE]\n\n"


def event(name: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    """Encode an event."""
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class Events(StreamingResponse):
    """Streams events, says in silence that it is still here, and closes what makes them however that ends."""

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        """Own `pieces`."""
        self._pieces = kept_alive(pieces)
        super().__init__(self._pieces, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()


async def kept_alive(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Pass on `pieces`, with comments where none comes for long; closes them."""
    coming: asyncio.Task[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(pieces, b""))
            await asyncio.wait({coming}, timeout=SILENCE_SECONDS)
            if not coming.done():
                yield STILL_HERE
                continue
            piece, coming = coming.result(), None
            if not piece:
                return
            yield piece
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await pieces.aclose()
