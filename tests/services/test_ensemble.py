"""Several generations behind one request: one order, one end, one receipt, and one failure for all."""

from collections.abc import Callable

import pytest

from services.engine.events import Done, Output
from services.engine.generation import Run, Tally, Terms
from services.engine.metrics import Ending
from services.engine.stepper import Result
from services.ensemble import Ensemble, OneReceipt
from services.errors import GenerationFailed
from tests.services.conftest import LONG, Bench, Gate, Script

pytestmark = pytest.mark.anyio


def picture(name: str) -> Script:
    def script(run: Run) -> Result:
        run.emit(name)
        run.count(images=1, pixel_steps=10)
        run.advance(1, 1)
        return Result()

    return script


def failing(run: Run) -> Result:
    run.count(pixel_steps=5)
    raise GenerationFailed("no")


def together(bench: Bench, tell: Callable[[Tally], None], *scripts: Script) -> Ensemble:
    terms = Terms(LONG, tell=OneReceipt(len(scripts), tell).add)
    return Ensemble([bench.engine.submit(script, None, seed, terms) for seed, script in enumerate(scripts, start=3)])


async def test_outputs_come_in_order_with_one_end_and_one_receipt(bench: Bench) -> None:
    told: list[Tally] = []
    ensemble = together(bench, told.append, *map(picture, "abc"))
    events = [event async for event in ensemble]

    assert [event.data for event in events if isinstance(event, Output)] == ["a", "b", "c"]
    assert [event.usage for event in events if isinstance(event, Done)] == [{"images": 3, "pixel_steps": 30}]
    assert isinstance(events[-1], Done)
    assert (ensemble.seed, ensemble.num_iterations) == (3, 3)
    (tally,) = told
    assert (tally.made, tally.iterations, tally.ending) == ({"images": 3, "pixel_steps": 30}, 3, Ending.COMPLETE)


async def test_one_that_fails_fails_all_and_what_was_made_is_counted(bench: Bench) -> None:
    told: list[Tally] = []
    ensemble = together(bench, told.append, picture("a"), failing, picture("c"))
    with pytest.raises(GenerationFailed):
        [event async for event in ensemble]
    ensemble.cancel()
    await bench.serve()

    (tally,) = told
    assert tally.ending is Ending.FAILED
    assert tally.made["pixel_steps"] in (15, 25)  # the last one may have been stopped


async def test_who_leaves_leaves_all(bench: Bench) -> None:
    gate, told = Gate(), list[Tally]()

    def held(run: Run) -> Result:
        gate()
        run.advance(1, 2)
        return Result()

    ensemble = together(bench, told.append, held, picture("b"))
    assert gate.reached.wait(LONG)
    ensemble.cancel()
    gate.opened.set()
    await bench.serve()

    assert [tally.ending for tally in told] == [Ending.LEFT]
    assert told[0].made == {}
