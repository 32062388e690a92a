"""Answers that own what they stream: a generation's events out, and word back to the model when the caller leaves."""

import asyncio
import logging
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import anyio
from opentelemetry import trace
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from services.encoders import Encoder, EventEncoder, EventStream
from services.engine.events import Done, Event, Output
from services.engine.generation import Followed, Tally, Terms, untold
from services.errors import Cancelled, GenerationFailed, InvalidRequest, ServiceError, render
from services.finals import Files, FinalEvents
from services.schema import CALLER_HEADER, DEADLINE_HEADER, FINAL_EVENTS, MAX_PRIORITY, PRIORITY_HEADER

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499  # nobody reads it
NUM_PREVIEWS = 3  # for who follows events
PRIORITY = re.compile("-?[0-9]{1,3}")

logger = logging.getLogger("atelier.responses")


class Delivery:
    """A generation on its way to its caller as bytes. Close it however that ends."""

    def __init__(self, generation: Followed, encoder: Encoder) -> None:
        """Encode `generation` with `encoder`, and own both."""
        self._generation = generation
        self._encoder = encoder
        self._has_begun = False
        self._span = trace.get_tracer("atelier.worker").start_span("generation")
        self.streams = encoder.streams
        self.media_type = encoder.media_type

    @property
    def headers(self) -> dict[str, str]:
        """What is known of the generation by now; `RUN_HEADERS` lists them."""
        generation = self._generation
        known = {
            "x-seed": str(generation.seed),
            "x-model": generation.model,
            "x-queue-position": str(generation.position),
            "x-queue-seconds": f"{generation.seconds_queued:.3f}",
        }
        if not self.streams:
            known["x-iterations"] = str(generation.num_iterations)
            known["x-generation-seconds"] = f"{generation.seconds_run:.3f}"
        return known

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield bytes as they are made; all in one piece where the encoder does not stream.

        Raises:
            ServiceError: what ended the generation.
        """
        pieces: list[bytes] = []
        async for event in self._events():
            match event:
                case Output(data):
                    try:
                        pieces.append(await asyncio.to_thread(self._encoder.add, data))
                    except ServiceError as error:
                        if not isinstance(self._encoder, EventStream) or not self._has_begun:
                            raise
                        yield b"".join([*pieces, self._encoder.tell(error)])
                        return
                case Done() as done:
                    rest = self._rest(done)
                    while (piece := await asyncio.to_thread(next, rest, None)) is not None:
                        yield b"".join([*pieces, piece])
                        pieces.clear()
                    return
                case _ if isinstance(self._encoder, EventStream):
                    pieces.append(self._encoder.tell(event))
            if self.streams and any(pieces):
                self._has_begun = True
                yield b"".join(pieces)
                pieces.clear()
        yield b"".join(pieces)

    def _rest(self, done: Done) -> Iterator[bytes]:
        if isinstance(self._encoder, EventStream):
            return self._encoder.rest(done)
        return map(self._encoder.close, [done])  # not before it is asked for

    async def _events(self) -> AsyncIterator[Event | ServiceError]:
        """Yield the generation's events; an error is the last of them where the answer consists of events."""
        try:
            async for event in self._generation:
                yield event
        except ServiceError as error:
            self._span.set_attribute("error.type", error.code)
            if not isinstance(self._encoder, EventStream) or not self._has_begun:
                raise
            yield error

    async def close(self) -> None:
        """Stop the model and free the encoder, once no thread is in it any more."""
        self._generation.cancel()
        self._end_span()
        with anyio.CancelScope(shield=True):
            await asyncio.to_thread(self._encoder.abort)

    def _end_span(self) -> None:
        generation = self._generation
        self._span.set_attributes(
            {
                "gen_ai.request.model": generation.model,
                "atelier.queue_seconds": generation.seconds_queued,
                "atelier.run_seconds": generation.seconds_run,
                "atelier.iterations": generation.num_iterations,
            }
        )
        self._span.end()


class OwningResponse(StreamingResponse):
    """Streams a delivery and closes it however the stream ends, also when it never began."""

    def __init__(self, delivery: Delivery, first: bytes, rest: AsyncIterator[bytes]) -> None:
        """Own `delivery`, of whose pieces `first` has been made already."""
        super().__init__(chain(first, rest), headers=delivery.headers, media_type=delivery.media_type)
        self._delivery = delivery

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._delivery.close()


async def chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield `first`, then `rest`."""
    yield first
    async for piece in rest:
        yield piece


async def respond(request: Request, start: Callable[[], Awaitable[tuple[Followed, Encoder]]]) -> Response:
    """Start a generation and answer with its encoded outputs.

    The first bytes are made before the response exists, so that what fails at once answers with a status. Until then,
    and while they stream, a caller who leaves stops the model.

    Args:
        request: its `receive` tells when the caller leaves; its body has been read.
        start: admits the request to the engine.

    Raises:
        ServiceError: the request cannot be served.
        Cancelled: the caller left.
    """
    delivery = Delivery(*await start())
    pieces = delivery.pieces()
    try:
        first = await until_gone(anext(pieces), request.receive)
    except BaseException:
        await delivery.close()
        raise
    if delivery.streams:
        return OwningResponse(delivery, first, pieces)
    await pieces.aclose()
    await delivery.close()
    return Response(first, headers=delivery.headers, media_type=delivery.media_type)


async def rendered(answer: Awaitable[Response]) -> Response:
    """Wait for `answer`, and answer with the error if it comes to one.

    Nothing escapes: BentoML's time-out middleware would leave the caller waiting for the whole time-out.
    """
    try:
        return await answer
    except ServiceError as error:
        return render(error)
    except (Cancelled, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except Exception:
        logger.exception("a request failed")
        return render(GenerationFailed("the worker failed on this request; its log says why"))


async def until_gone(work: Awaitable[T], receive: Callable[[], Awaitable[Message]]) -> T:
    """Wait for `work` as long as the caller does.

    Raises:
        Cancelled: the caller left first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(working, leaving, return_exceptions=True)


async def disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def terms_of(request: Request, longest: float, tell: Callable[[Tally], None] = untold) -> Terms:
    """On what terms the caller waits: what the gateway says in headers, and previews for who follows events.

    Args:
        request: the caller's.
        longest: seconds that a request may take.
        tell: told what came of it.

    Raises:
        InvalidRequest: a header is not what it should be; it is named.
    """
    follows = wants(request, EventEncoder.media_type)
    return Terms(
        deadline=deadline_of(request, longest),
        caller=request.headers.get(CALLER_HEADER, ""),
        priority=priority_of(request),
        num_previews=NUM_PREVIEWS if follows else 0,
        wants_progress=follows,
        tell=tell,
    )


def priority_of(request: Request) -> int:
    """Return the caller's priority, 0 where nobody gave one.

    Raises:
        InvalidRequest: the header is no whole number, or too far from 0.
    """
    value = request.headers.get(PRIORITY_HEADER, "0")
    if not PRIORITY.fullmatch(value) or abs(int(value)) > MAX_PRIORITY:
        raise InvalidRequest(
            f"{PRIORITY_HEADER} must be a whole number between -{MAX_PRIORITY} and {MAX_PRIORITY}",
            param=PRIORITY_HEADER,
        )
    return int(value)


def deadline_of(request: Request, longest: float) -> float:
    """Seconds the caller still waits, at most `longest`.

    Raises:
        InvalidRequest: the header is no positive number.
    """
    value = request.headers.get(DEADLINE_HEADER)
    if value is None:
        return longest
    try:
        deadline = float(value)
    except ValueError:
        deadline = math.nan
    if not deadline > 0:
        raise InvalidRequest(f"{DEADLINE_HEADER} must be a positive number of seconds", param=DEADLINE_HEADER)
    return min(deadline, longest)


def negotiated(
    request: Request,
    raw: Encoder,
    document: Callable[[Encoder], Encoder] | None = None,
    files: Callable[[], Files] | None = None,
) -> Encoder:
    """Choose the answer's form by the caller's `Accept`: events, the raw media, or else a document around it.

    Args:
        request: the caller's.
        raw: encodes the media itself.
        document: wraps `raw`; None: there is no such form, and the raw media is the default.
        files: makes the files that `FINAL_EVENTS` ask for; None: there are none, and the events hold the raw media.
    """
    if files is not None and wants_final(request):
        return FinalEvents(files())
    if wants(request, EventEncoder.media_type):
        return EventEncoder(raw)
    return raw if document is None or wants(request, raw.media_type) else document(raw)


def chosen(request: Request, encoders: Sequence[Callable[[], Encoder]]) -> Encoder:
    """Make the encoder whose media type the caller's `Accept` names; the first where it names none of them."""
    made = [make() for make in encoders]
    return next((encoder for encoder in made if wants(request, encoder.media_type)), made[0])


def wants(request: Request, media_type: str) -> bool:
    """Whether the caller asked for the raw media by its type, and did not name JSON before it."""
    for name, _ in accepted(request):
        if name in {media_type, "application/json"}:
            return name == media_type
    return False


def wants_final(request: Request) -> bool:
    """Whether the caller asked for `FINAL_EVENTS`, likewise."""
    wanted = next(parameters_of(FINAL_EVENTS))
    return wants(request, wanted[0]) and wanted in accepted(request)


def accepted(request: Request) -> list[tuple[str, frozenset[str]]]:
    """What the caller's `Accept` names, each with its parameters."""
    return list(parameters_of(request.headers.get("accept", "")))


def parameters_of(accept: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Split an `Accept` header."""
    for one in accept.lower().split(","):
        name, *parameters = (part.strip() for part in one.split(";"))
        yield name, frozenset(parameters)
