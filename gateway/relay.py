"""The only code that talks to a worker: open, watch over, hand the bytes on, always close."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.balance import Replica
from gateway.bodies import form_with_model, with_members
from gateway.catalog import Ours, Target
from gateway.errand import Absent, Declined, Errand
from gateway.errors import CallerLeft, GatewayError, ProviderFailed, WorkerDied, WorkerTimedOut, WorkerUnreachable
from gateway.meter import Meter
from gateway.metrics import Metrics
from gateway.preference import prefers_job
from gateway.providers import ADDED_USAGE, Provider
from gateway.pulse import Pulse
from gateway.refusals import workers_refusal
from gateway.transport import MAX_URLS, UNSENT
from gateway.waiting import Patience, Reason, departure
from services.registry import Task
from services.schema import (
    ATTEMPT_HEADER,
    CALLER_HEADER,
    DEADLINE_HEADER,
    MAX_ATTEMPT,
    RUN_HEADERS,
    TOKEN_HEADER,
    envelope,
)

logger = logging.getLogger("atelier.gateway")

# The request, the model that is asked for in place of what the body names, path, accept, body.
Instead = Callable[[Request, str | None, str, str, Mapping[str, Any]], Awaitable[Response]]

# Content-Encoding stays: bytes are passed on raw. Hop-by-hop headers (RFC 9110 §7.6.1) do not.
MEDIA_HEADERS = frozenset({b"content-type", b"content-length", b"content-encoding"})
PASSED_ON = MEDIA_HEADERS.union(map(str.encode, RUN_HEADERS))
DEADLINE, CALLER, ATTEMPT = DEADLINE_HEADER.encode(), CALLER_HEADER.encode(), ATTEMPT_HEADER.encode()
JSON = (b"content-type", b"application/json")
MAX_TEXT_BYTES = 4_000_000
NEXT_PLEASE = 500  # and beyond: an answer after which somebody else may be asked; so is TOO_MANY
TOO_MANY = 429
WORKER = "atelier.worker"  # extension of an answer: the base URL of the replica that it comes from


class RelayResponse(Response):
    """Streams an open upstream response and closes it however the relay ends.

    Closing sits in `__call__` because neither a background task nor a generator's `finally` runs in every case: client
    gone before the first byte, client gone midway, upstream broken midway.
    """

    def __init__(
        self,
        upstream: httpx.Response,
        left: Reason,
        idle_timeout: float,
        headers: Mapping[str, str],
        passed_on: frozenset[bytes] = PASSED_ON,
        meter: Meter | None = None,
    ) -> None:
        """Own `upstream`, whose body has not been read.

        Args:
            upstream: whose bytes are the answer.
            left: is done when the caller has gone.
            idle_timeout: seconds between two chunks.
            headers: of the answer.
            passed_on: names of headers that are taken over from `upstream`.
            meter: sees what passes, and may keep some of it from the caller.
        """
        self._upstream = upstream
        self._left = left
        self._idle_timeout = idle_timeout
        self._meter = meter
        self._tail = b"\n\n"  # of what has been sent: what events end with
        self.status_code = upstream.status_code
        self.background = None
        own = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        # As bytes: a header that is not latin-1 cannot fail here.
        self.raw_headers = own + [(name, value) for name, value in lowered(upstream) if name in passed_on]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close. A body that breaks off is left unfinished, and the server closes the connection.

        Who reads events is told why first: as one of them, as long as none has come in part.
        """
        try:
            await self._stream(send)
        except httpx.HTTPError as error:
            logger.warning("the worker broke off: %s", type(error).__name__)
            await self._tell(error, send)
        except CallerLeft:
            pass  # the usage log has it
        finally:
            await self._upstream.aclose()

    async def _stream(self, send: Send) -> None:
        chunks = self._upstream.stream  # as they come: httpx would only count them
        assert isinstance(chunks, httpx.AsyncByteStream)  # noqa: S101 - as every transport for async makes it
        async with Patience(late=httpx.ReadTimeout("nothing came for too long")) as patience:
            patience.unless(self._left)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            num_missing = int(dict(self.raw_headers).get(b"content-length", -1))
            patience.wait(self._idle_timeout)
            async for chunk in chunks:
                patience.wait(None)
                num_missing -= len(chunk)
                if self._meter is not None:
                    chunk = self._meter.watch(chunk)
                self._tail = (self._tail + chunk[-2:])[-2:]
                await send({"type": "http.response.body", "body": chunk, "more_body": num_missing != 0})
                if not num_missing:
                    if self._meter is not None:
                        self._meter.end()
                    return  # with the last piece, and not in a piece of its own
                patience.wait(self._idle_timeout)
            rest = self._meter.end() if self._meter is not None else b""
            await send({"type": "http.response.body", "body": rest, "more_body": False})

    async def _tell(self, error: httpx.HTTPError, send: Send) -> None:
        if not is_stream(self._upstream) or self._tail != b"\n\n":
            return
        said: GatewayError = WorkerDied("the worker went away while it worked on this; try again")
        if isinstance(error, httpx.ReadTimeout):
            said = WorkerTimedOut("nothing came for too long")
        if self._meter is not None:
            said = ProviderFailed("the outside model server broke off")
        content = envelope(said.status, str(said), said.code).model_dump_json().encode()
        body = b"event: error\ndata: " + content + b"\n\n"
        with suppress(OSError):  # the caller has gone as well
            await send({"type": "http.response.body", "body": body, "more_body": True})


class Relay:
    """Sends requests to workers over one transport."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        pulse: Pulse,
        metrics: Metrics,
        write_receipt: Callable[[str, int, Task, str, Meter], None],
        *,
        connect_timeout: float,
        deadline: float,
        idle_timeout: float,
        token: str = "",
    ) -> None:
        """Share `transport`; all times in seconds.

        Args:
            transport: keeps the connections to the workers. It is asked directly: a client would remember cookies of
                one caller for the next.
            pulse: tells when a worker that has not answered yet is gone.
            metrics: where its requests are counted and timed.
            write_receipt: told of what a provider has answered, when the request has ended.
            connect_timeout: until there is a connection.
            deadline: until a worker's first byte.
            idle_timeout: between two chunks.
            token: by which workers know this gateway; empty: they do not ask for one.
        """
        self._transport = transport
        self._metrics = metrics
        self._write_receipt = write_receipt
        self._token = [(TOKEN_HEADER.encode(), token.encode())] if token else []
        self._extensions = {"timeout": {"connect": connect_timeout, "pool": connect_timeout}}
        self._pulse = pulse
        self._deadline = deadline
        self._idle_timeout = idle_timeout
        self._urls: dict[str, httpx.URL] = {}
        self.instead: Instead | None = None  # what makes a job of a request that prefers to be one

    async def send(
        self,
        request: Request,
        targets: Sequence[Target],
        path: str,
        *,
        accept: str,
        headers: Mapping[str, str] | None = None,
        renamed: Mapping[str, str] | None = None,
        may_be_a_job: bool = True,
        **body: Any,
    ) -> Response:
        """Send a request to the first of `targets` that takes it on, and answer as soon as it does.

        Args:
            request: the client's, whose leaving ends the work.
            targets: as the catalog names them.
            path: of the worker's route.
            accept: the media type wanted.
            headers: to be added to the answer.
            renamed: the worker's names of fields that the client calls otherwise.
            may_be_a_job: whether a client that prefers a job has one instead.
            body: `content`, `files` or `data`, as httpx takes them.

        Raises:
            WorkerUnreachable: no replica takes a connection, or the one that did does not even answer `/livez`.
            WorkerDied: the connection broke before the answer began.
            WorkerTimedOut: no answer within the deadline.
            WorkerRefused: the worker answered anything but a success.
            ProviderFailed: the provider did, or nothing.
            ProviderResting: it is left alone for a while.
            CallerLeft: the client left before the answer.
        """
        if may_be_a_job and self.instead is not None and prefers_job(request.scope) and isinstance(targets[0], Ours):
            return await self.instead(request, targets[0].model, path, accept, body)
        errand = self._errand(request, path, accept, body, renamed or {})
        attempt, target, upstream = await self._first_to_take(targets, errand)
        if isinstance(target, Provider):
            named = {**(headers or {}), "x-model": target.id}
            meter = self._metered(errand, attempt, target, upstream)
            return RelayResponse(upstream, errand.left, self._idle_timeout, named, MEDIA_HEADERS, meter)
        return RelayResponse(upstream, errand.left, self._idle_timeout, headers or {})

    async def open(
        self, request: Request, targets: Sequence[Target], path: str, *, accept: str, attempt: int, **body: Any
    ) -> httpx.Response:
        """Return an answer that has begun, to be read under `watched` and closed by whoever asks; for jobs.

        Raises:
            GatewayError: as `send`.
        """
        errand = replace(self._errand(request, path, accept, body, {}), attempt=min(attempt, MAX_ATTEMPT))
        _, _, upstream = await self._first_to_take(targets, errand)
        return upstream

    @asynccontextmanager
    async def watched(self, upstream: httpx.Response) -> AsyncGenerator[None]:
        """Read `upstream` inside, however long it is silent: as long as the worker lives.

        Raises:
            WorkerUnreachable: it does not any more.
        """
        gone = asyncio.create_task(self._pulse.stops(upstream.extensions[WORKER]))
        try:
            async with Patience() as patience:
                patience.unless(gone)
                yield
        finally:
            gone.cancel()

    async def read(self, request: Request, targets: Sequence[Target], path: str, **body: Any) -> bytes:
        """Return the whole JSON of an answer.

        Raises:
            GatewayError: as `send`; also where the answer breaks off, or is too long to be one.
        """
        errand = self._errand(request, path, "application/json", body, {"messages": "prompt"})
        attempt, target, upstream = await self._first_to_take(targets, errand)
        meter = self._metered(errand, attempt, target, upstream)
        try:
            async with Patience(errand.seconds_left, ProviderFailed("the provider does not answer")) as patience:
                patience.unless(errand.left)
                meter.watch(found := await whole(upstream))
                meter.end()
                return found
        finally:
            await upstream.aclose()

    def _errand(
        self, request: Request, path: str, accept: str, body: Mapping[str, Any], renamed: Mapping[str, str]
    ) -> Errand:
        seconds = request.scope.get("patience", self._deadline)
        ends_at = asyncio.get_running_loop().time() + seconds
        return Errand(request, path, accept, body, renamed, departure(request), ends_at)

    async def _first_to_take(self, targets: Sequence[Target], errand: Errand) -> tuple[int, Target, httpx.Response]:
        """Ask one after the other until one takes it on: what comes then, comes from that one.

        What is reserved is kept for the next before it is asked: the receipt of the last would give it back.
        """
        error: GatewayError = WorkerUnreachable("there is nobody to ask")
        keep_reserved = errand.request.scope.get("keep_reserved")
        self._metrics.upstream(errand.path, errand.request.scope["leases"])
        for attempt, target in enumerate(targets, start=errand.attempt):
            if attempt > errand.attempt and keep_reserved is not None:
                await keep_reserved(attempt)
            try:
                opening = target.open(errand) if isinstance(target, Provider) else self._open(target, errand, attempt)
                return attempt, target, await opening
            except Declined as declined:
                error = declined.error
        raise error

    def _metered(self, errand: Errand, attempt: int, target: Target, upstream: httpx.Response) -> Meter:
        """See what the answer takes, and write a receipt when the request has ended, however it does."""
        meter = Meter(hides=bool(upstream.extensions.get(ADDED_USAGE)) and is_stream(upstream))
        scope = errand.request.scope
        task, _ = scope["asked"]
        scope["leases"].callback(self._write_receipt, scope["request_id"], attempt, task, target.id, meter)
        return meter

    async def _open(self, target: Ours, errand: Errand, attempt: int) -> httpx.Response:
        """Ask one replica after the other until one takes a connection.

        Raises:
            Declined: none does, or the one that does is too busy or fails.
        """
        refused: Exception | None = None
        for replica in target.replicas.in_order():
            replica.take(errand.request.scope["leases"])
            sent = self._request(replica, errand, target.model, attempt)
            try:
                return await self._ask(replica, errand, sent)
            except (CallerLeft, WorkerTimedOut) as error:
                error.nothing_was_made = UNSENT in sent.extensions
                raise
            except (httpx.ConnectError, httpx.ConnectTimeout, Absent) as error:
                replica.refused_connection()
                refused = error
        raise Declined(WorkerUnreachable("the worker for this takes no connections; it may be starting")) from refused

    async def _ask(self, replica: Replica, errand: Errand, sent: httpx.Request) -> httpx.Response:
        """Return a success whose body has not been read.

        Raises:
            httpx.ConnectError: or httpx.ConnectTimeout: nothing was sent.
            Absent: nobody took it.
        """
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
            upstream.request = sent
            upstream.extensions[WORKER] = replica.url
            replica.answered()
            if not upstream.is_success:
                refused = await workers_refusal(upstream, errand.renamed)
                raise Declined(refused) if refused.status == TOO_MANY or refused.status >= NEXT_PLEASE else refused
        return upstream

    def _url(self, url: str) -> httpx.URL:
        """Parse each once: there are few at a time, and it takes as long as all else about a request."""
        if url not in self._urls:
            if len(self._urls) >= MAX_URLS:
                self._urls.clear()
            self._urls[url] = httpx.URL(url)
        return self._urls[url]

    def _request(self, replica: Replica, errand: Errand, model: str | None, attempt: int) -> httpx.Request:
        client = errand.request.client
        caller = errand.request.scope["caller"].id or (client.host if client else "")
        headers = [
            (b"accept", errand.accept.encode("latin-1")),
            (b"accept-encoding", b"identity"),
            (b"x-request-id", errand.request.scope["request_id"].encode()),
            (ATTEMPT, b"%d" % attempt),
            *self._token,
            (DEADLINE, b"%.3f" % max(errand.seconds_left, 0.001)),
            (CALLER, caller.encode()),  # callers take turns in a worker's queue
        ]
        url = self._url(replica.url + errand.path)
        if "content" not in errand.body:
            form = form_with_model(errand.body, model) if model else errand.body
            return httpx.Request("POST", url, headers=headers, extensions=self._extensions, **form)
        content = with_members(errand.body["content"], {"model": model}) if model else errand.body["content"]
        stream = httpx.ByteStream(content)  # which httpx adds no headers for: the transport frames it
        sent = httpx.Request("POST", url, headers=[*headers, JSON], extensions=self._extensions, stream=stream)
        sent.read()
        return sent


async def whole(upstream: httpx.Response) -> bytes:
    """Read a body to its end.

    Raises:
        ProviderFailed: it breaks off, or is too long.
    """
    body = b""
    try:
        async for chunk in upstream.aiter_raw():
            body += chunk
            if len(body) > MAX_TEXT_BYTES:
                raise ProviderFailed("the provider's answer is too long")
    except httpx.HTTPError as error:
        raise ProviderFailed("the provider's answer broke off") from error
    return body


def is_stream(upstream: httpx.Response) -> bool:
    """Whether events come whose number nobody has said."""
    headers = upstream.headers
    return headers.get("content-type", "").startswith("text/event-stream") and "content-length" not in headers


def lowered(upstream: httpx.Response) -> list[tuple[bytes, bytes]]:
    """The headers with names in lower case, as ASGI has them."""
    return [(name.lower(), value) for name, value in upstream.headers.raw]
