"""A relay that does nothing else, to compare with: `python -m benchmarks.bare_relay PORT UPSTREAM`."""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]
PASSED_ON = frozenset({b"content-type", b"content-length"})


class Relay:
    """Passes a body on, and what comes back."""

    def __init__(self, upstream: str) -> None:
        """Take the base URL."""
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        self._session = self._session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=512))
        body = b""
        while (message := await receive())["more_body"]:
            body += message["body"]
        body += message["body"]
        headers = {"content-type": "application/json"}
        async with self._session.post(self._upstream + scope["path"], data=body, headers=headers) as answer:
            passed = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() in PASSED_ON]
            await send({"type": "http.response.start", "status": answer.status, "headers": passed})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        Relay(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), access_log=False, lifespan="off", log_level="error"
    )
