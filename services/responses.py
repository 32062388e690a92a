"""Answers that own what they stream: a generation's events out, and word back to the model when the caller leaves."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from services.encoders import Encoder
from services.engine.events import Done, Output
from services.engine.generation import Generation
from services.errors import Cancelled, InvalidRequest, ServiceError, render
from services.schema import DEADLINE_HEADER

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499  # nobody reads it


class OwningResponse(StreamingResponse):
    """Streams a generator and closes it however the stream ends."""

    def __init__(self, body: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str]) -> None:
        """Own `body`."""
        super().__init__(body, headers=headers, media_type=media_type)
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._body.aclose()


async def respond(request: Request, start: Callable[[], Awaitable[tuple[Generation, Encoder]]]) -> Response:
    """Start a generation and answer with its encoded outputs.

    The first bytes are made before the response exists, so that what fails at once answers with a status. Until then,
    and while they stream, a caller who leaves stops the model.

    Args:
        request: its `receive` tells when the caller leaves; its body has been read.
        start: admits the request to the engine.
    """
    try:
        generation, encoder = await start()
        body = encode(generation, encoder)
        try:
            first = await until_gone(anext(body), request.receive)
        except BaseException:
            await body.aclose()
            raise
    except ServiceError as error:
        return render(error)
    except Cancelled:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    headers = {"x-seed": str(generation.seed), "x-model": generation.model}
    if encoder.streams:
        return OwningResponse(prepend(first, body), encoder.media_type, headers)
    return Response(first, headers=headers, media_type=encoder.media_type)


async def encode(generation: Generation, encoder: Encoder) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a generation; cancel it and free the encoder however the iteration ends.

    An encoder that does not stream gives all its bytes in one piece.
    """
    pieces: list[bytes] = []
    try:
        async for event in generation:
            match event:
                case Output(data):
                    pieces.append(await asyncio.to_thread(encoder.add, data))
                case Done() as done:
                    pieces.append(await asyncio.to_thread(encoder.close, done))
                    yield b"".join(pieces)
                    return
            if encoder.streams and any(pieces):
                yield b"".join(pieces)
                pieces.clear()
    finally:
        generation.cancel()
        encoder.abort()


async def prepend(first: bytes, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield `first` and the rest of `body`, and close it."""
    try:
        yield first
        async for piece in body:
            yield piece
    finally:
        await body.aclose()


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
    """Whether the caller asked for the raw media by its type."""
    return media_type in request.headers.get("accept", "")
