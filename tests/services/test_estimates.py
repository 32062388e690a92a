"""Estimates: the callers in turn, and nobody waits for one who has left or for a worker that goes down."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from services.engine.estimates import Estimates
from services.engine.generation import Terms
from services.errors import ModelLoading
from tests.services.conftest import LONG, Gate

pytestmark = pytest.mark.anyio


@pytest.fixture
def estimates() -> Iterator[Estimates]:
    made = Estimates()
    yield made
    made.close()


def blocked(gate: Gate) -> int:
    gate()
    return 0


async def test_callers_take_turns_and_who_has_left_is_not_estimated(estimates: Estimates) -> None:
    gate, order = Gate(), list[str]()

    def note(name: str) -> int:
        order.append(name)
        return len(name)

    def ask(name: str, caller: str, priority: int = 0) -> "asyncio.Task[int]":
        return asyncio.create_task(estimates.of(lambda: note(name), Terms(LONG, caller, priority)))

    busy = asyncio.create_task(estimates.of(partial(blocked, gate), Terms(LONG)))
    assert await asyncio.to_thread(gate.reached.wait, LONG)
    asked = [ask(f"greedy{number}", "greedy") for number in range(3)]
    asked += [ask("modest", "modest"), ask("urgent", "greedy", priority=1)]
    leaving = ask("gone", "other")
    await asyncio.sleep(0)  # all have asked
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.opened.set()

    assert await asyncio.gather(*asked) == [7, 7, 7, 6, 6]
    assert order == ["urgent", "greedy0", "modest", "greedy1", "greedy2"]
    assert await busy == 0


async def test_what_is_wrong_with_a_request_is_told(estimates: Estimates) -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await estimates.of(fail, Terms(LONG))


async def test_a_worker_that_goes_down_tells_who_waits(estimates: Estimates) -> None:
    gate = Gate()
    busy = asyncio.create_task(estimates.of(partial(blocked, gate), Terms(LONG)))
    assert await asyncio.to_thread(gate.reached.wait, LONG)
    waiting = asyncio.create_task(estimates.of(threading.get_ident, Terms(LONG)))
    await asyncio.sleep(0)
    estimates.close()

    for asked in (waiting, estimates.of(threading.get_ident, Terms(LONG))):
        with pytest.raises(ModelLoading):
            await asked
    gate.opened.set()
    assert await busy == 0
