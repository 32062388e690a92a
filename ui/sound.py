"""Speech for the browser's player, as it is made: asked of the gateway with the key of the browser's cookie."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from urllib.parse import quote

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ui.client import base_of
from ui.key import COOKIE

PATH = "/sound/{job_id}"
PATIENCE = httpx.Timeout(10, read=None)  # seconds; the first of it may be long in coming
PASSED = ("content-type", "content-length", "content-range", "accept-ranges")


class Passed(StreamingResponse):
    """Passes a sound on, and closes where it comes from however that ends."""

    def __init__(self, upstream: httpx.Response, leases: AsyncExitStack) -> None:
        """Own what comes, and the `leases` on it."""
        headers = {name: upstream.headers[name] for name in PASSED if name in upstream.headers}
        super().__init__(upstream.aiter_raw(), upstream.status_code, {**headers, "cache-control": "no-store"})
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
        if "range" in request.headers:
            headers["range"] = request.headers["range"]
        path = f"/v1/jobs/{quote(request.path_params['job_id'], safe='')}/sound"
        leases = AsyncExitStack()
        try:
            http = await leases.enter_async_context(httpx.AsyncClient(timeout=PATIENCE, trust_env=False))
            upstream = await leases.enter_async_context(http.stream("GET", f"{base_of(url)}{path}", headers=headers))
        except httpx.HTTPError:
            await leases.aclose()
            return PlainTextResponse("The gateway does not answer.", 502)
        return Passed(upstream, leases)

    return play
