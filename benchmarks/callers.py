"""Callers that cost little: one connection each, one request after the other; they count pieces and take times."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools

PIECE = b"data: {"


@dataclass
class Answer:
    """What a caller saw: the status, seconds until the first byte of the body and the last, pieces of a stream."""

    status: int = 0
    first: float = 0.0
    whole: float = 0.0
    num_pieces: int = 0


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        """Begin unconnected."""
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._began = 0.0
        self._done: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Give up."""
        if self._done and not self._done.done():
            self._done.set_exception(error or ConnectionResetError("closed midway"))

    @property
    def is_open(self) -> bool:
        """Whether it can ask."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send a request as it is on the wire, and return when its answer is whole."""
        assert self._transport is not None  # noqa: S101  it is connected
        self._parser = httptools.HttpResponseParser(self)
        self._answer, self._began = Answer(), time.perf_counter()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        """Note a piece of the body."""
        self._answer.first = self._answer.first or time.perf_counter() - self._began
        self._answer.num_pieces += data.count(PIECE)

    def on_message_complete(self) -> None:
        """Note the end."""
        self._answer.whole = time.perf_counter() - self._began
        self._answer.status = self._parser.get_status_code()
        if self._done and not self._done.done():
            self._done.set_result(self._answer)

    def close(self) -> None:
        """Leave."""
        if self._transport:
            self._transport.close()


@dataclass
class Seen:
    """What all callers saw together, in `seconds`."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.answers) / self.seconds

    def quantile(self, share: float, *, of_first: bool = False) -> float:
        """Milliseconds that `share` of the requests took at most, to the last byte or to the first."""
        times = sorted(answer.first if of_first else answer.whole for answer in self.answers)
        return 1000 * times[min(len(times) - 1, int(share * len(times)))]


async def connected(port: int, number: int) -> list[Caller]:
    """Return callers that are connected."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Caller, "127.0.0.1", port))[1] for _ in range(number)]


async def closed_loop(port: int, request: bytes, num_callers: int, num_requests: int) -> Seen:
    """Ask again as soon as there is an answer.

    Raises:
        SystemExit: an answer is no success.
    """
    callers, seen, numbers = await connected(port, num_callers), Seen(), iter(range(num_requests))

    async def call(caller: Caller) -> None:
        for _ in numbers:
            seen.answers.append(await caller.ask(request))

    began = time.perf_counter()
    await asyncio.gather(*map(call, callers))
    seen.seconds = time.perf_counter() - began
    close(callers)
    return checked(seen)


async def open_loop(port: int, request: bytes, gaps: Sequence[float]) -> Seen:
    """Ask after each of `gaps` seconds, whatever the others are at; the wait for a connection counts.

    Raises:
        SystemExit: an answer is no success.
    """
    free, everybody, seen = [], [], Seen()
    loop = asyncio.get_running_loop()

    async def call(due: float) -> None:
        caller = free.pop() if free else None
        if caller is None or not caller.is_open:  # servers close what has been idle for long
            (caller,) = await connected(port, 1)
            everybody.append(caller)
        answer = await caller.ask(request)
        answer.whole = time.perf_counter() - due
        seen.answers.append(answer)
        free.append(caller)

    calls, began = [], time.perf_counter()
    due = began
    for gap in gaps:
        due += gap
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        calls.append(loop.create_task(call(due)))
    await asyncio.gather(*calls)
    seen.seconds = time.perf_counter() - began
    close(everybody)
    return checked(seen)


def close(callers: Sequence[Caller]) -> None:
    """Let all leave."""
    for caller in callers:
        caller.close()


def checked(seen: Seen) -> Seen:
    """Return `seen` if all was well."""
    if bad := [answer.status for answer in seen.answers if answer.status != 200]:
        raise SystemExit(f"{len(bad)} of {len(seen.answers)} answers were no success: {bad[0]}")
    return seen
