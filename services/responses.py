"""Answers that own what they stream: a generation's events out, and word back to the model when the caller leaves."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from services.encoders import Encoder
from services.engine.events import Done, Output
from services.engine.generation import Generation
from services.errors import Cancelled, GenerationFailed, InvalidRequest, ServiceError, render
from services.schema import DEADLINE_HEADER

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499  # nobody reads it

logger = logging.getLogger("atelier.responses")


class Delivery:
    """A generation on its way to its caller as bytes. Close it however that ends."""

    def __init__(self, generation: Generation, encoder: Encoder) -> None:
        """Encode `generation` with `encoder`, and own both."""
        self._generation = generation
        self._encoder = encoder
        self.streams = encoder.streams
        self.media_type = encoder.media_type
        self.headers = {"x-seed": str(generation.seed), "x-model": generation.model}

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield bytes as they are made; all in one piece where the encoder does not stream.

        Raises:
            ServiceError: what ended the generation.
        """
        pieces: list[bytes] = []
        async for event in self._generation:
            match event:
                case Output(data):
                    pieces.append(await asyncio.to_thread(self._encoder.add, data))
                case Done() as done:
                    pieces.append(await asyncio.to_thread(self._encoder.close, done))
                    yield b"".join(pieces)
                    return
            if self.streams and any(pieces):
                yield b"".join(pieces)
                pieces.clear()

    async def close(self) -> None:
        """Stop the model and free the encoder, once no thread is in it any more."""
        self._generation.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.to_thread(self._encoder.abort)


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


async def respond(request: Request, start: Callable[[], Awaitable[tuple[Generation, Encoder]]]) -> Response:
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


def wants(request: Request, media_type: str) -> bool:
    """Whether the caller asked for the raw media by its type, and did not name JSON before it."""
    for accepted in request.headers.get("accept", "").lower().split(","):
        name = accepted.partition(";")[0].strip()
        if name in {media_type, "application/json"}:
            return name == media_type
    return False
