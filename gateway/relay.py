"""The only code that talks to a worker: open, watch over, hand the bytes on, always close."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import responses
from typing import Any

import anyio
import httpx
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.balance import Replica, Replicas
from gateway.errors import CallerLeft, WorkerDied, WorkerRefused, WorkerTimedOut, WorkerUnreachable
from gateway.pulse import Pulse
from gateway.waiting import Patience, Reason, departure
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


@dataclass(frozen=True)
class Errand:
    """What a caller asked for, as it goes on.

    Args:
        request: the caller's, whose leaving ends the work.
        path: of the route that is asked.
        accept: the media type wanted.
        body: `content`, `files` or `data`, as httpx takes them.
        renamed: the worker's names of fields that the caller calls otherwise.
        left: fails when the caller has left.
        ends_at: when the answer must have begun, by the event loop's clock.
    """

    request: Request
    path: str
    accept: str
    body: Mapping[str, Any]
    renamed: Mapping[str, str]
    left: Reason
    ends_at: float

    @property
    def seconds_left(self) -> float:
        """Until the answer must have begun."""
        return self.ends_at - asyncio.get_running_loop().time()


class RelayResponse(Response):
    """Streams an open upstream response and closes it however the relay ends.

    Closing sits in `__call__` because neither a background task nor a generator's `finally` runs in every case: client
    gone before the first byte, client gone midway, upstream broken midway.
    """

    def __init__(self, upstream: httpx.Response, left: Reason, idle_timeout: float, headers: Mapping[str, str]) -> None:
        """Own `upstream`, whose body has not been read; `left` tells when the caller has gone."""
        self._upstream = upstream
        self._left = left
        self._idle_timeout = idle_timeout
        self.status_code = upstream.status_code
        self.background = None
        self.init_headers(headers)
        # As bytes: a header that is not latin-1 cannot fail here.
        self.raw_headers += [(name, value) for name, value in lowered(upstream) if name in PASSED_ON]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close. A body that breaks off is left unfinished, and the server closes the connection."""
        try:
            await self._stream(send)
        except httpx.HTTPError as error:
            logger.warning("request %s: the worker broke off: %s", scope.get("request_id"), type(error).__name__)
        except CallerLeft:
            pass  # the usage log has it
        finally:
            with anyio.CancelScope(shield=True):
                await self._upstream.aclose()

    async def _stream(self, send: Send) -> None:
        chunks = self._upstream.stream  # as they come: httpx would only count them
        assert isinstance(chunks, httpx.AsyncByteStream)  # noqa: S101 - as every transport for async makes it
        async with Patience(late=httpx.ReadTimeout("nothing came for too long")) as patience:
            patience.unless(self._left)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            patience.wait(self._idle_timeout)
            async for chunk in chunks:
                patience.wait(None)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                patience.wait(self._idle_timeout)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def lowered(upstream: httpx.Response) -> list[tuple[bytes, bytes]]:
    """The headers with names in lower case, as ASGI has them."""
    return [(name.lower(), value) for name, value in upstream.headers.raw]


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
        worker: Replicas,
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
            worker: its replicas.
            path: of the worker's route.
            accept: the media type wanted.
            headers: to be added to the answer.
            renamed: the worker's names of fields that the client calls otherwise.
            body: `content`, `files` or `data`, as httpx takes them.

        Raises:
            WorkerUnreachable: no replica takes a connection, or the one that did does not even answer `/livez`.
            WorkerDied: the connection broke before the answer began.
            WorkerTimedOut: no answer within the deadline.
            WorkerRefused: the worker answered anything but a success.
            CallerLeft: the client left before the answer.
        """
        left = departure(request)
        ends_at = asyncio.get_running_loop().time() + self._deadline
        errand = Errand(request, path, accept, body, renamed or {}, left, ends_at)
        upstream = await self._first_to_take(worker, errand)
        return RelayResponse(upstream, left, self._idle_timeout, headers or {})

    async def _first_to_take(self, worker: Replicas, errand: Errand) -> httpx.Response:
        """Ask one replica after the other until one takes a connection: what comes then, comes from that one."""
        for replica in worker.in_order():
            replica.take(errand.request.scope["leases"])
            try:
                return await self._ask(replica, errand)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                replica.refused_connection()
                refused = error
        raise WorkerUnreachable("the worker for this takes no connections; it may be starting") from refused

    async def _ask(self, replica: Replica, errand: Errand) -> httpx.Response:
        """Return a success whose body has not been read.

        Raises:
            httpx.ConnectError: or httpx.ConnectTimeout: nothing was sent.
        """
        sent = self._request(replica, errand)
        late = WorkerTimedOut("the result was not there within the deadline; ask for less")
        async with Patience(errand.seconds_left, late) as patience:
            patience.unless(errand.left)
            patience.unless_later(self._pulse.interval, lambda: self._pulse.stops(replica.url))
            try:
                upstream = await self._transport.handle_async_request(sent)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                raise
            except httpx.PoolTimeout as error:
                raise WorkerUnreachable("as many requests as the operator allows are under way") from error
            except httpx.TransportError as error:
                replica.broke_off()
                raise WorkerDied("the worker went away while it worked on this; try again") from error
            replica.answered()
            if not upstream.is_success:
                raise await refusal(upstream, errand.renamed)
        return upstream

    def _request(self, replica: Replica, errand: Errand) -> httpx.Request:
        caller = errand.request.client
        headers = {
            "accept": errand.accept,
            "accept-encoding": "identity",
            "x-request-id": errand.request.scope["request_id"],
            DEADLINE_HEADER: f"{max(errand.seconds_left, 0.001):.3f}",
            CALLER_HEADER: caller.host if caller else "",  # callers take turns in a worker's queue
            **({"content-type": "application/json"} if "content" in errand.body else {}),
        }
        url = replica.url + errand.path
        return httpx.Request("POST", url, headers=headers, extensions=self._extensions, **errand.body)


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
