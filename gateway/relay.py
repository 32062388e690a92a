"""The only code that talks to a worker: open, watch over, hand the bytes on, always close."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import responses
from typing import Any

import anyio
import httpx
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import WorkerDied, WorkerRefused, WorkerTimedOut, WorkerUnreachable
from gateway.pulse import Pulse
from gateway.waiting import caller_leaves, seconds_pass, unless
from services.schema import (
    CALLER_HEADER,
    DEADLINE_HEADER,
    RUN_HEADERS,
    ErrorDetail,
    ErrorEnvelope,
    error_type,
)

logger = logging.getLogger("atelier.gateway")

# Content-Encoding stays: bytes are passed on raw. Hop-by-hop headers (RFC 9110 §7.6.1) do not.
PASSED_ON = frozenset({b"content-type", b"content-length", b"content-encoding", *map(str.encode, RUN_HEADERS)})
MAX_ERROR_BYTES = 65_536
RETRY_AFTER = 3  # seconds, where a busy worker does not say


class RelayResponse(StreamingResponse):
    """Streams an open upstream response and closes it however the relay ends.

    Closing sits in `__call__` because neither a background task nor a generator's `finally` runs in every case: client
    gone before the first byte, client gone midway, upstream broken midway.
    """

    def __init__(self, upstream: httpx.Response, idle_timeout: float, headers: Mapping[str, str]) -> None:
        """Own `upstream`, whose body has not been read."""
        self._upstream = upstream
        self._chunks = timed(upstream.aiter_raw(), idle_timeout)
        super().__init__(self._chunks, upstream.status_code, headers)
        # As bytes: a header that is not latin-1 cannot fail here.
        self.raw_headers += [(name, value) for name, value in lowered(upstream) if name in PASSED_ON]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close. A body that breaks off is left unfinished, and the server closes the connection."""
        try:
            await super().__call__(scope, receive, send)
        except httpx.HTTPError as error:
            logger.warning("request %s: the worker broke off: %s", scope.get("request_id"), type(error).__name__)
        finally:
            with anyio.CancelScope(shield=True):
                await self._chunks.aclose()
                await self._upstream.aclose()


def lowered(upstream: httpx.Response) -> list[tuple[bytes, bytes]]:
    """The headers with names in lower case, as ASGI has them."""
    return [(name.lower(), value) for name, value in upstream.headers.raw]


async def timed(chunks: AsyncIterator[bytes], idle_timeout: float) -> AsyncGenerator[bytes]:
    """Yield `chunks`; raise `httpx.ReadTimeout` when one takes longer than `idle_timeout` seconds."""
    while True:
        try:
            async with asyncio.timeout(idle_timeout):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise httpx.ReadTimeout("nothing came for too long") from error
        if chunk is None:
            return
        yield chunk


class Relay:
    """Sends requests to workers over one transport."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        pulse: Pulse,
        *,
        connect_timeout: float,
        deadline: float,
        idle_timeout: float,
    ) -> None:
        """Share `transport`; all times in seconds.

        Args:
            transport: keeps the connections to the workers. It is asked directly: a client would remember cookies of
                one caller for the next.
            pulse: tells when a worker that has not answered yet is gone.
            connect_timeout: until there is a connection.
            deadline: until a worker's first byte.
            idle_timeout: between two chunks.
        """
        self._transport = transport
        self._extensions = {"timeout": {"connect": connect_timeout, "pool": connect_timeout}}
        self._pulse = pulse
        self._deadline = deadline
        self._idle_timeout = idle_timeout

    async def send(
        self,
        request: Request,
        worker: str,
        path: str,
        *,
        accept: str,
        headers: Mapping[str, str] | None = None,
        renamed: Mapping[str, str] | None = None,
        **body: Any,
    ) -> Response:
        """Send a request to a worker and answer as soon as it does.

        Args:
            request: the client's, whose leaving ends the worker's work.
            worker: its base URL.
            path: of the worker's route.
            accept: the media type wanted.
            headers: to be added to the answer.
            renamed: the worker's names of fields that the client calls otherwise.
            body: `content`, `files` or `data`, as httpx takes them.

        Raises:
            WorkerUnreachable: no connection, or the worker does not even answer `/livez`.
            WorkerDied: the connection broke before the answer began.
            WorkerTimedOut: no answer within the deadline.
            WorkerRefused: the worker answered anything but a success.
            CallerLeft: the client left before the answer.
        """
        sent_headers = {
            "accept": accept,
            "accept-encoding": "identity",
            "x-request-id": request.scope["request_id"],
            DEADLINE_HEADER: str(self._deadline),
            CALLER_HEADER: request.client.host if request.client else "",  # callers take turns in a worker's queue
            **({"content-type": "application/json"} if "content" in body else {}),
        }
        sent = httpx.Request("POST", worker + path, headers=sent_headers, extensions=self._extensions, **body)
        late = WorkerTimedOut("the result was not there within the deadline; ask for less")
        upstream = await unless(
            self._open(sent, renamed or {}),
            caller_leaves(request.receive),
            self._pulse.stops(worker),
            seconds_pass(self._deadline, late),
        )
        return RelayResponse(upstream, self._idle_timeout, headers or {})

    async def _open(self, sent: httpx.Request, renamed: Mapping[str, str]) -> httpx.Response:
        """Send, and return a success whose body has not been read."""
        try:
            upstream = await self._transport.handle_async_request(sent)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise WorkerUnreachable("the worker for this takes no connections; it may be starting") from error
        except httpx.PoolTimeout as error:
            raise WorkerUnreachable("as many requests as the operator allows are under way") from error
        except httpx.TransportError as error:
            raise WorkerDied("the worker went away while it worked on this; try again") from error
        if not upstream.is_success:
            raise await refusal(upstream, renamed)
        return upstream


async def refusal(upstream: httpx.Response, renamed: Mapping[str, str]) -> WorkerRefused:
    """Read a worker's error, and close."""
    try:
        said = ErrorEnvelope.model_validate_json(await error_body(upstream)).error
    except ValidationError:
        said = unreadable(upstream.status_code)
    finally:
        await upstream.aclose()
    status = upstream.status_code if upstream.is_error else HTTPStatus.BAD_GATEWAY
    is_busy = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    retry_after = upstream.headers.get("retry-after", "")
    return WorkerRefused(
        status,
        in_callers_words(said.message, said.param, renamed),
        said.code or "worker_error",
        renamed.get(said.param or "", said.param),
        should_retry=upstream.headers.get("x-should-retry", str(is_busy)).lower() == "true",
        retry_after=int(retry_after) if retry_after.isdecimal() else RETRY_AFTER if is_busy else None,
    )


async def error_body(upstream: httpx.Response) -> bytes:
    """The beginning of an error's body, as far as it comes; what is cut off cannot be parsed, and says nothing."""
    body = b""
    with suppress(httpx.HTTPError):
        async for chunk in upstream.aiter_raw():
            body += chunk
            if len(body) > MAX_ERROR_BYTES:
                break
    return body[:MAX_ERROR_BYTES]


def in_callers_words(message: str, param: str | None, renamed: Mapping[str, str]) -> str:
    """`message` with the caller's name of the field that it begins with."""
    field, colon, rest = message.partition(": ")
    return f"{renamed[field]}{colon}{rest}" if field == param and field in renamed else message


def unreadable(status: int) -> ErrorDetail:
    """What to say for a worker whose error is in no envelope: its own words may not be for clients."""
    phrase = responses.get(status, "Unknown Error")
    code = phrase.lower().replace(" ", "_")
    return ErrorDetail(message=f"the worker answered {status} {phrase}", type=error_type(status), code=code)
