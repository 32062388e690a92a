"""`unless`: what is waited for, what is given up, and that nothing is left running."""

import asyncio
from collections.abc import Iterable
from itertools import repeat
from typing import Any, Never

import httpx
import pytest
from starlette.types import Message

from gateway.errors import CallerLeft, WorkerUnreachable
from gateway.pulse import NUM_PROBES, Pulse
from gateway.waiting import caller_leaves, seconds_pass, unless

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Left(Exception):
    """A reason to stop waiting."""


async def never(log: list[str]) -> Any:
    try:
        await asyncio.Event().wait()
    finally:
        log.append("stopped")


async def at_once(value: str = "done") -> str:
    return value


async def fails(error: Exception) -> Never:
    raise error


class TestUnless:
    async def test_the_result_ends_the_watch(self) -> None:
        log: list[str] = []
        assert await unless(at_once(), never(log), never(log)) == "done"
        assert log == ["stopped", "stopped"]

    async def test_a_reason_ends_the_work_before_it_is_raised(self) -> None:
        log: list[str] = []
        with pytest.raises(Left):
            await unless(never(log), never(log), fails(Left()))
        assert log == ["stopped", "stopped"]

    async def test_work_that_is_done_when_the_caller_leaves_counts(self) -> None:
        assert await unless(at_once(), fails(Left()), fails(Left())) == "done"

    async def test_an_error_of_the_work_goes_before_a_reason(self) -> None:
        with pytest.raises(ZeroDivisionError):
            await unless(fails(ZeroDivisionError()), fails(Left()))

    async def test_who_waits_may_be_cancelled(self) -> None:
        log: list[str] = []
        waiting = asyncio.create_task(unless(never(log), never(log)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert log == ["stopped", "stopped"]

    async def test_time_is_a_reason(self) -> None:
        with pytest.raises(Left):
            await unless(never([]), seconds_pass(0, Left()))

    async def test_a_caller_is_there_until_the_server_says_otherwise(self) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": b"late", "more_body": True},
            {"type": "http.request", "body": b"", "more_body": False},
            {"type": "http.disconnect"},
            {"type": "http.request"},
        ]

        async def receive() -> Message:
            return messages.pop(0)

        with pytest.raises(CallerLeft):
            await unless(never([]), caller_leaves(receive))
        assert messages == [{"type": "http.request"}]


class Worker(httpx.AsyncBaseTransport):
    """Answers questions after its gate opens, some of them."""

    def __init__(self, answers: Iterable[bool]) -> None:
        self.answers = iter(answers)
        self.asked: list[str] = []
        self.gate = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        await self.gate.wait()
        if next(self.answers):
            return httpx.Response(500)
        raise httpx.ConnectError("refused")


class TestPulse:
    async def test_all_who_wait_for_a_worker_share_a_question(self) -> None:
        worker = Worker(repeat(False))
        async with httpx.AsyncClient(transport=worker) as http:
            pulse = Pulse(http, interval=0.001)
            waiting = [asyncio.create_task(pulse.stops("http://worker/base")) for _ in range(100)]
            worker.gate.set()
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, WorkerUnreachable)
        assert set(worker.asked) == {"http://worker/base/livez"}
        assert len(worker.asked) < len(waiting)

    async def test_whoever_stops_waiting_leaves_the_question_to_the_others(self) -> None:
        worker = Worker(repeat(False))
        async with httpx.AsyncClient(transport=worker) as http:
            pulse = Pulse(http, interval=0.05)
            first, second = (asyncio.create_task(pulse.stops("http://worker")) for _ in range(2))
            while not worker.asked:  # noqa: ASYNC110 (the question is what is waited for)
                await asyncio.sleep(0)
            for _ in range(10):  # by now the second waits for the same answer
                await asyncio.sleep(0)
            first.cancel()
            worker.gate.set()
            with pytest.raises(WorkerUnreachable):
                await second
            assert first.cancelled()

    async def test_only_silence_in_a_row_counts(self) -> None:
        answers = [False, True] * 3 + [False] * NUM_PROBES
        worker = Worker(answers)
        worker.gate.set()
        async with httpx.AsyncClient(transport=worker) as http:
            with pytest.raises(WorkerUnreachable):
                await Pulse(http, interval=0.001).stops("http://worker")
        assert len(worker.asked) == len(answers)
