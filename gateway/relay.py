"""The only code that talks to a worker: open, watch over, hand the bytes on, always close."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, Never

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import WorkerDied, WorkerRefused, WorkerTimedOut, WorkerUnreachable
from services.schema import DEADLINE_HEADER

logger = logging.getLogger("atelier.gateway")

# Content-Encoding stays: bytes are passed on raw. Hop-by-hop headers (RFC 9110 §7.6.1) do not.
PASSED_ON = ("content-type", "content-length", "content-encoding", "x-seed", "x-model")
CLIENT_CLOSED_REQUEST = 499  # nobody reads it
MAX_ERROR_BYTES = 65_536
NUM_PROBES = 2  # unanswered in a row, and the worker counts as gone


class RelayResponse(StreamingResponse):
    """Streams an open upstream response and closes it however the relay ends.

    Closing sits in `__call__` because neither a background task nor a generator's `finally` runs in every case: client
    gone before the first byte, client gone midway, upstream broken midway.
    """

    def __init__(self, upstream: httpx.Response, idle_timeout: float, headers: Mapping[str, str]) -> None:
        """Own `upstream`, whose body has not been read."""
        passed_on = {name: upstream.headers[name] for name in PASSED_ON if name in upstream.headers}
        super().__init__(timed(upstream.aiter_raw(), idle_timeout), upstream.status_code, {**passed_on, **headers})
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close. A body that breaks off is left unfinished, and the server closes the connection."""
        try:
            await super().__call__(scope, receive, send)
        except (httpx.HTTPError, TimeoutError) as error:
            logger.warning("request %s: the worker broke off: %s", scope.get("request_id"), type(error).__name__)
        finally:
            with anyio.CancelScope(shield=True):
                await self._upstream.aclose()


async def timed(chunks: AsyncIterator[bytes], idle_timeout: float) -> AsyncIterator[bytes]:
    """Yield `chunks`; raise `TimeoutError` when one takes longer than `idle_timeout` seconds."""
    while True:
        async with asyncio.timeout(idle_timeout):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk


class Relay:
    """Sends requests to workers over one client."""

    def __init__(self, http: httpx.AsyncClient, deadline: float, idle_timeout: float, probe_interval: float) -> None:
        """Share `http`; all times in seconds.

        Args:
            http: keeps the connections to the workers.
            deadline: until a worker's first byte.
            idle_timeout: between two chunks.
            probe_interval: how often a worker that has not answered yet is asked whether it lives.
        """
        self._http = http
        self._deadline = deadline
        self._idle_timeout = idle_timeout
        self._probe_interval = probe_interval

    async def send(
        self,
        request: Request,
        url: str,
        *,
        accept: str,
        headers: Mapping[str, str] | None = None,
        renamed: Mapping[str, str] | None = None,
        **body: Any,
    ) -> Response:
        """Send a request to the worker at `url` and answer as soon as it does.

        Args:
            request: the client's, whose leaving ends the worker's work.
            url: of the worker's route.
            accept: the media type wanted.
            headers: to be added to the answer.
            renamed: the worker's names of fields that the client calls otherwise.
            body: `content`, `files` or `data`, as httpx takes them.

        Raises:
            WorkerUnreachable: no connection, or the worker does not even answer `/livez`.
            WorkerDied: the connection broke before the answer began.
            WorkerTimedOut: no answer within the deadline.
            WorkerRefused: the worker answered 4xx or 5xx.
        """
        sent = self._http.build_request(
            "POST",
            url,
            headers={
                "accept": accept,
                "x-request-id": request.scope["request_id"],
                DEADLINE_HEADER: str(self._deadline),
                **({"content-type": "application/json"} if "content" in body else {}),
            },
            **body,
        )
        upstream = await self._first(request, sent)
        if upstream is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if upstream.is_error:
            raise await refusal(upstream, renamed or {})
        return RelayResponse(upstream, self._idle_timeout, headers or {})

    async def _first(self, request: Request, sent: httpx.Request) -> httpx.Response | None:
        """Wait for the worker's headers as long as the client stays (else None) and the worker lives."""
        sending = asyncio.ensure_future(self._http.send(sent, stream=True))
        leaving = asyncio.ensure_future(disconnect(request.receive))
        watching = asyncio.ensure_future(self._watch(sent.url.copy_with(path="/livez", query=None)))
        answer: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._deadline):
                await asyncio.wait((sending, leaving, watching), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                answer = sending.result()
            elif watching.done():
                await watching
            return answer
        except TimeoutError as error:
            raise WorkerTimedOut("the result was not there within the deadline; ask for less") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise WorkerUnreachable("the worker for this takes no connections; it may be starting") from error
        except httpx.TransportError as error:
            raise WorkerDied("the worker went away while it worked on this; try again") from error
        finally:
            await discard(leaving, watching)
            if answer is None:
                await discard(sending)

    async def _watch(self, livez: httpx.URL) -> Never:
        """Raise `WorkerUnreachable` once the worker no longer answers."""
        unanswered = 0
        while unanswered < NUM_PROBES:
            await asyncio.sleep(self._probe_interval)
            try:
                await self._http.get(livez, timeout=self._probe_interval)
                unanswered = 0
            except httpx.TransportError:
                unanswered += 1
        raise WorkerUnreachable("the worker for this does not answer; it may be restarting")


async def discard(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what is under way and close an answer that came after all."""
    for task in tasks:
        task.cancel()
    with anyio.CancelScope(shield=True):
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, httpx.Response):
                await outcome.aclose()


async def disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def refusal(upstream: httpx.Response, renamed: Mapping[str, str]) -> WorkerRefused:
    """Read a worker's error, and close."""
    body = b""
    try:
        async for chunk in upstream.aiter_raw():
            body += chunk
            if len(body) > MAX_ERROR_BYTES:
                break
    finally:
        await upstream.aclose()
    try:
        error = json.loads(body)["error"]
        message, code, param = str(error["message"]), str(error["code"]), error["param"]
    except (ValueError, KeyError, TypeError):
        status = HTTPStatus(upstream.status_code)
        message, code, param = f"the worker answered {status} {status.phrase}", status.name.lower(), None
    retry_after = upstream.headers.get("retry-after", "")
    is_busy = upstream.status_code in {429, 503}
    return WorkerRefused(
        upstream.status_code,
        message,
        code,
        renamed.get(param, param),
        should_retry=upstream.headers.get("x-should-retry", str(is_busy)).lower() == "true",
        retry_after=int(retry_after) if retry_after.isdecimal() else 3 if is_busy else None,
    )
