"""Speech for the browser's player, as it is made: asked of the gateway with the key of the browser's cookie."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from urllib.parse import quote

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ui import bare
from ui.client import base_of
from ui.key import COOKIE

PATH = "/sound/{job_id}"
BARE = "bare"  # in its query: samples come, and are to become a WAV
PATIENCE = httpx.Timeout(10, read=None)  # seconds; the first of it may be long in coming
PASSED = ("content-type", "content-length", "content-range", "accept-ranges")


class Passed(StreamingResponse):
    """Passes a sound on, and closes where it comes from however that ends."""

    def __init__(
        self, status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes], leases: AsyncExitStack
    ) -> None:
        """Own what comes, and the `leases` on it."""
        super().__init__(pieces, status, {**headers, "cache-control": "no-store"})
        self._leases = leases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._leases.aclose()


def player(url: str) -> Callable[[Request], Awaitable[Response]]:
    """Return the route behind a player, which asks the gateway at `url`."""

    async def play(request: Request) -> Response:
        key = request.cookies.get(COOKIE, "")
        headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {key}"} if key else {})}
        asked, is_bare = request.headers.get("range", ""), BARE in request.query_params
        part = bare.beneath(asked) if is_bare else asked
        if part:
            headers["range"] = part
        path = f"/v1/jobs/{quote(request.path_params['job_id'], safe='')}/sound"
        leases = AsyncExitStack()
        try:
            http = await leases.enter_async_context(httpx.AsyncClient(timeout=PATIENCE, trust_env=False))
            upstream = await leases.enter_async_context(http.stream("GET", f"{base_of(url)}{path}", headers=headers))
        except httpx.HTTPError:
            await leases.aclose()
            return PlainTextResponse("The gateway does not answer.", 502)
        if is_bare and upstream.is_success:
            return Passed(upstream.status_code, *bare.as_wav(upstream, asked), leases)
        passed = {name: upstream.headers[name] for name in PASSED if name in upstream.headers}
        return Passed(upstream.status_code, passed, upstream.aiter_raw(), leases)

    return play
