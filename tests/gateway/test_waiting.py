"""`unless`: what is waited for, what is given up, and that nothing is left running."""

import asyncio
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import httpx
import pytest
from starlette.types import Message

from gateway.errors import CallerLeft, WorkerUnreachable
from gateway.pulse import NUM_PROBES, Pulse
from gateway.waiting import Patience, Reason, caller_leaves
from tests.gateway.conftest import LONG

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


async def given(error: Exception) -> Exception:
    return error


async def give_up(*reasons: Reason, seconds: float | None = None) -> None:
    """Wait without end, unless there is a reason."""
    async with Patience(seconds, Left()) as patience:
        for reason in reasons:
            patience.unless(reason)
        await never([])


def because(error: Exception) -> Reason:
    return asyncio.create_task(given(error))


class TestPatience:
    async def test_what_is_done_in_time_counts(self) -> None:
        async with Patience(LONG, Left()) as patience:
            patience.unless(reason := asyncio.create_task(never([])))
            await asyncio.sleep(0)
        assert not reason.done()
        reason.cancel()

    async def test_a_reason_ends_the_work_before_it_is_raised(self) -> None:
        log: list[str] = []

        async def work() -> None:
            async with Patience() as patience:
                patience.unless(because(Left()))
                await never(log)

        with pytest.raises(Left):
            await work()
        assert log == ["stopped"]

    async def test_a_reason_from_before_counts(self) -> None:
        reason = because(Left())
        await asyncio.wait([reason])
        with pytest.raises(Left):
            await give_up(reason)

    async def test_the_first_reason_is_the_one(self) -> None:
        with pytest.raises(Left):
            await give_up(because(Left()), because(KeyError()), seconds=LONG)

    async def test_a_reason_that_is_looked_for_later_costs_nothing_before(self) -> None:
        log: list[str] = []
        async with Patience() as patience:
            patience.unless_later(LONG, lambda: never(log))
        assert log == []

    async def test_a_reason_that_is_looked_for_later_counts(self) -> None:
        async def work() -> None:
            async with Patience() as patience:
                patience.unless_later(0, lambda: given(Left()))
                await never([])

        with pytest.raises(Left):
            await work()

    async def test_nobody_looks_for_reasons_when_all_is_done(self) -> None:
        log: list[str] = []
        is_looking = asyncio.Event()

        async def looking() -> Exception:
            is_looking.set()
            await never(log)
            return Left()

        async with Patience() as patience:
            patience.unless_later(0, looking)
            await is_looking.wait()
        await asyncio.sleep(0)
        assert log == ["stopped"]

    async def test_an_error_of_the_work_goes_before_a_reason(self) -> None:
        async def work() -> None:
            async with Patience() as patience:
                patience.unless(because(Left()))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await work()

    async def test_who_waits_may_be_cancelled(self) -> None:
        log: list[str] = []

        async def wait() -> None:
            async with Patience(LONG, Left()):
                await never(log)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert log == ["stopped"]

    async def test_time_is_a_reason(self) -> None:
        with pytest.raises(Left):
            await give_up(seconds=0)

    async def test_patience_can_be_renewed(self) -> None:
        async def work() -> None:
            async with Patience(0, Left()) as patience:
                patience.wait(None)
                await asyncio.sleep(0.001)
                log.append("renewed")
                patience.wait(0)
                await never([])

        log: list[str] = []
        with pytest.raises(Left):
            await work()
        assert log == ["renewed"]

    async def test_a_caller_is_there_until_the_server_says_otherwise(self) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": b"late", "more_body": True},
            {"type": "http.request", "body": b"", "more_body": False},
            {"type": "http.disconnect"},
            {"type": "http.request"},
        ]

        async def receive() -> Message:
            return messages.pop(0)

        assert isinstance(await caller_leaves(receive), CallerLeft)
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
            for outcome in await asyncio.gather(*waiting):
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
            assert isinstance(await second, WorkerUnreachable)
            assert first.cancelled()

    async def test_only_silence_in_a_row_counts(self) -> None:
        answers = [False, True] * 3 + [False] * NUM_PROBES
        worker = Worker(answers)
        worker.gate.set()
        async with httpx.AsyncClient(transport=worker) as http:
            assert isinstance(await Pulse(http, interval=0.001).stops("http://worker"), WorkerUnreachable)
        assert len(worker.asked) == len(answers)
