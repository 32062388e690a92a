"""Pure ASGI middleware: what is done to every request; none of it holds a body."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from secrets import token_hex

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import Caller
from gateway.errors import FILE_FIELDS, GatewayError, PayloadTooLarge, Restarting, render
from gateway.events import END
from gateway.headers import header, put_headers
from gateway.keys.schema import MARK, without_keys
from gateway.metrics import Metrics
from gateway.usage.content import Content, ContentPolicy
from gateway.usage.schema import Ending, Record
from services.logs import request_id

logger = logging.getLogger("atelier.gateway")

NO_SUCH_MODEL = 404
ACCEPTABLE_ID = re.compile(rf"(?!{MARK})[\w-]{{8,64}}\Z", re.ASCII)  # and no key
NOTHING = ContentPolicy()
INTERNAL = "/internal/"  # what workers tell; no caller's request
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # as labels; others are "other"


class Exchange:
    """One request and its answer, as they pass: counted and timed."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, content: Content) -> None:
        """Stand between the server and the application."""
        self._content = content
        self._scope = scope
        self._receive = receive
        self._send = send
        self._began = time.perf_counter()
        self._started_at = datetime.now(UTC)
        scope["path"] = without_keys(scope["path"])  # which the usage log and traces keep
        offered = header(scope, b"x-request-id")
        scope["request_id"] = offered if ACCEPTABLE_ID.match(offered) else token_hex(8)
        self.status = 500
        self.model = ""  # that answered, if one did
        self.first_byte_seconds: float | None = None
        self._num_bytes = 0
        self._tail = b""  # of events, as far as it may be their end
        self._is_stream = False
        self._is_complete = False
        self._has_left = False

    @property
    def request_id(self) -> str:
        """The caller's, or one of our own; what says who asks may add to it."""
        found: str = self._scope["request_id"]
        return found

    async def receive(self) -> Message:
        """Pass a message to the application."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._has_left = True
        self._content.ask(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Pass a message to the client; the first one gets the headers that every answer has."""
        if message["type"] == "http.response.start":
            seconds = time.perf_counter() - self._began
            self.status = message["status"]
            self.model = header(message, b"x-model")
            self._is_stream = header(message, b"content-type").startswith("text/event-stream")
            request_id = self.request_id.encode()
            put_headers(
                message,
                (b"x-request-id", request_id),
                (b"x-api-request-id", request_id),
                (b"x-response-time", b"%.6f" % seconds),
            )
            if not self._has_left:
                self.first_byte_seconds = seconds
        elif not self._has_left:
            self._num_bytes += len(message.get("body", b""))
            self._content.answer(message.get("body", b""))
        try:
            await self._send(message)
        except OSError:
            self._has_left = not self._is_complete
            raise
        if message["type"] == "http.response.body":
            self._note_end(message)

    def _note_end(self, message: Message) -> None:
        """See whether the caller has it all: behind the last event many close, and do not wait for the body's end."""
        if self._is_stream:
            self._tail = (self._tail + message.get("body", b""))[-len(END) :]
        if self._tail == END or not message.get("more_body", False):
            self._is_complete = True

    @property
    def ending(self) -> Ending:
        """How it ended; to be asked when it has."""
        if self._has_left:
            return "left"
        return "complete" if self._is_complete else "failed"

    @property
    def route(self) -> str:
        """The template of the route that served it; callers choose paths, and a series for each would never end."""
        return getattr(self._scope.get("route"), "path", "other")

    @property
    def refusal(self) -> str:
        """Why it was refused, or failed; empty where it was not."""
        return str(self._scope.get("refusal", ""))

    def record(self) -> Record:
        """What goes into the usage log; to be asked when it has ended."""
        client = self._scope.get("client")
        caller: Caller = self._scope["caller"]
        modality, asked_model = self._scope.get("asked", ("", None))
        return Record(
            request_id=self.request_id,
            started_at=self._started_at,
            method=self._scope["method"],
            endpoint=self._scope["path"],
            client_address=client[0] if client else "",
            response_seconds=time.perf_counter() - self._began,
            first_byte_seconds=self.first_byte_seconds,
            status=self.status,
            bytes_out=0 if self._scope["method"] == "HEAD" else self._num_bytes,  # the server drops a HEAD's body
            ending=self.ending,
            successful=self.ending == "complete" and self.status < 400,
            caller=caller.id,
            owner=caller.owner,
            route=self.route,
            model=self.model or (asked_model or "" if self.status != NO_SUCH_MODEL else ""),
            modality=modality,
            prompt=self._content.prompt(self._scope["query_string"]) if modality else None,
            output=self._content.output() if modality == "text" else None,
        )


class UnderWay:
    """Counts the requests under way, and tells when there are none."""

    def __init__(self) -> None:
        """Begin with none."""
        self._number = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        """One more."""
        self._number += 1
        self._none.clear()

    def __exit__(self, *error: object) -> None:
        """One less."""
        self._number -= 1
        if not self._number:
            self._none.set()

    async def end(self, patience: float) -> None:
        """Wait until there are none, at most `patience` seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), patience)


class Accounting:
    """Gives each request an id, a clock and a stack of leases that end with it, and keeps the books."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        put: Callable[[Record], None],
        under_way: UnderWay,
        policy: ContentPolicy = NOTHING,
    ) -> None:
        """Wrap `app`; `put` takes a record and must not wait; `policy` says what of the content goes into it."""
        self._policy = policy
        self._under_way = under_way
        self._app = app
        self._metrics = metrics
        self._put = put

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        content = Content(self._policy)
        exchange = Exchange(scope, receive, send, content)
        request_id.set(exchange.request_id)  # for the log lines; the server gives each request a context of its own
        scope["caller"], scope["content"] = Caller(), content
        with self._under_way:
            self._metrics.in_progress.inc()
            try:
                async with AsyncExitStack() as leases:
                    scope["leases"] = leases
                    await self._app(scope, exchange.receive, exchange.send)
            finally:
                self._metrics.in_progress.dec()
                self._keep(exchange)

    def _keep(self, exchange: Exchange) -> None:
        record = exchange.record()
        if not record.endpoint.startswith(INTERNAL):
            self._put(record)
        if exchange.model:
            self._metrics.count_answer(exchange.model, record.ending)
        if exchange.refusal:
            self._metrics.refusals.labels(exchange.refusal).inc()
        method = record.method if record.method in METHODS else "other"
        requests, response_seconds, first_byte_seconds = self._metrics.of(
            method, exchange.route, record.status, record.ending
        )
        requests.inc()
        response_seconds.observe(record.response_seconds)
        if record.first_byte_seconds is not None:
            first_byte_seconds.observe(record.first_byte_seconds)


class LastResort:
    """Answers with an error what nobody else has caught, as long as nothing else has been answered."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_noting(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except asyncio.CancelledError:  # the server's patience with us has ended, not the caller's
            if has_started:
                raise
            await render(Restarting("the gateway is restarting; try again in a few seconds"))(scope, receive, send)
        except Exception:
            if has_started:
                raise  # the server closes the connection: half an answer must not look whole
            logger.exception("a request failed")
            await render(GatewayError("the gateway failed; its log says why"))(scope, receive, send)


class BodyLimit:
    """Answers 413 to a body that is too long: at once where its length is declared, else when it gets there."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Wrap `app`; bodies may have `max_bytes`."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = header(scope, b"content-length")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        num_bytes = 0
        has_started = False

        async def receive_limited() -> Message:
            nonlocal num_bytes
            if num_bytes <= self._max_bytes:
                message = await receive()
                num_bytes += len(message.get("body", b""))
            # What is too long is read no further: to the application the caller has left.
            return message if num_bytes <= self._max_bytes else {"type": "http.disconnect"}

        async def send_unless_refused(message: Message) -> None:
            nonlocal has_started
            if has_started or num_bytes <= self._max_bytes:
                has_started = True
                await send(message)

        await self._app(scope, receive_limited, send_unless_refused)
        if num_bytes > self._max_bytes and not has_started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = PayloadTooLarge(f"the request body is larger than the {self._max_bytes} bytes that are allowed")
        error.param = FILE_FIELDS.get(scope["path"])
        await render(error)(scope, receive, send)
