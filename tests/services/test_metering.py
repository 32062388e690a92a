"""What is counted is what was made: for every modality, in any company, whether whole, left midway or failed."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from services.engine.generation import Run, Tally, Terms
from services.engine.metrics import Ending
from services.engine.slots import Slot
from services.engine.stepper import Result
from services.errors import Cancelled, DeadlineExceeded, GenerationFailed, ServiceError
from services.receipts import units_of
from services.settings import Settings
from tests.services.conftest import LONG, Bench, Gate, MakeBench
from tests.services.stepping import Arrival, Recorder, run
from tests.services.test_generators import MAKERS, Shelf, job

PIXELS = 64 * 64
by_model = pytest.mark.parametrize("model", sorted(MAKERS))


@pytest.fixture(scope="module")
def shelf(worker_settings: Settings) -> Shelf:
    return Shelf(worker_settings)


def made(model: str, recorder: Recorder, phases: Counter[str]) -> dict[str, float]:
    """What came of a request, by the forwards it was in and by what left the model; nothing is zero."""
    match model:
        case "tinyllama-1.1b-chat":
            unread = recorder.state.unread  # the prompt's last part gives the first token
            is_read = not unread
            prompt = unread[0].row.length if unread else len(recorder.state.job.tokens(lambda _: ())[0])
            written = is_read + phases["DECODE"]
            cached = recorder.made["cached_tokens"]
            units = {"tokens": prompt + written, "prompt_tokens": prompt, "cached_tokens": cached}
            units["completion_tokens"] = written
        case "bark-small":
            units = {"audio_seconds": sum(len(sound.samples) / 24_000 for sound in recorder.outputs)}
        case "tiny-sd":
            units = {"pixel_steps": PIXELS * phases["DENOISE"]}
        case "stable-video-diffusion-img2vid":
            units = {"frames": len(recorder.outputs), "pixel_steps": PIXELS * (phases["DENOISE"] + phases["DECODE"])}
        case "wan2.1-t2v-1.3b":  # the library's own loop: two steps, two pieces to decode, the end
            units = {"frames": len(recorder.outputs), "pixel_steps": PIXELS * min(4, len(recorder.progress))}
        case _:
            units = {"meshes": len(recorder.outputs)}
    return {unit: number for unit, number in units.items() if number}


ARRIVALS = st.builds(
    lambda seed, tick, stop_after, raises: (seed, tick, stop_after, raises),
    st.integers(0, 9),
    st.integers(0, 5),
    st.none() | st.integers(1, 8),
    st.sampled_from([Cancelled, DeadlineExceeded]),
)


@by_model
@given(mix=st.lists(ARRIVALS, min_size=1, max_size=4), repeated=st.frozensets(st.integers(1, 12), max_size=3))
@examples(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_units_are_what_was_made(shelf: Shelf, model: str, mix: list[Any], repeated: frozenset[int]) -> None:
    arrivals = [
        Arrival(job(model), seed, tick, stop_after=stop_after, raises=raises) for seed, tick, stop_after, raises in mix
    ]
    recorders, forwards = run(shelf[model], arrivals, repeated=repeated if model != "wan2.1-t2v-1.3b" else frozenset())

    for number, recorder in enumerate(recorders):
        phases = Counter(
            forward.phase.name for forward in forwards if number in forward.members and forward.phase is not None
        )
        assert recorder.is_over
        assert units_of(recorder.made) == pytest.approx(made(model, recorder, phases))


def writing(written: Counter[int], number: int, length: int, breaks_at: int | None) -> Any:
    """A request that makes a unit an iteration, and remembers how many."""

    def script(run: Run) -> Result:
        for step in range(1, length + 1):
            if step == breaks_at:
                raise GenerationFailed("broken")
            written[number] += 1
            run.count(units=1)
            run.advance(step, length)
        return Result()

    return script


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(4))
async def test_every_generation_is_told_of_once_and_rightly(bench: Bench, seed: int) -> None:
    dice = random.Random(seed)
    written: Counter[int] = Counter()
    tallies: dict[int, list[Tally]] = {number: [] for number in range(60)}

    async def ask(number: int) -> Ending:
        script = writing(written, number, dice.randrange(1, 200), dice.choice([None, None, 1, 20]))
        deadline = dice.choice([LONG, LONG, 0.002])
        generation = bench.engine.submit(script, None, 0, Terms(deadline, tell=tallies[number].append))
        try:
            async for _ in generation:
                if dice.random() < 0.01:
                    generation.cancel()
        except DeadlineExceeded:
            return Ending.LATE
        except GenerationFailed:
            return Ending.FAILED
        except ServiceError:
            return Ending.LEFT
        return Ending.COMPLETE

    for start in range(0, 60, 6):
        endings = await asyncio.gather(*map(ask, range(start, start + 6)))
        await bench.serve()
        for number, ending in zip(range(start, start + 6), endings, strict=True):
            (tally,) = tallies[number]
            assert tally.made.get("units", 0) == written[number] == tally.iterations
            assert tally.ending == ending or ending is Ending.LATE  # which its follower may see before the model


@pytest.mark.anyio
async def test_who_leaves_while_waiting_made_nothing_and_is_told_of(bench: Bench) -> None:
    gate = Gate()

    def held(run: Run) -> Result:
        gate()
        return Result()

    running = bench.submit(held)
    await asyncio.to_thread(gate.reached.wait, LONG)
    tallies: list[Tally] = []
    waiting = bench.engine.submit(writing(Counter(), 0, 5, None), None, 0, Terms(LONG, tell=tallies.append))
    waiting.cancel()

    (tally,) = tallies
    assert (tally.ending, tally.made, tally.iterations, tally.run_seconds) == (Ending.LEFT, {}, 0, 0)
    gate.opened.set()
    assert [event async for event in running]


@pytest.mark.anyio
async def test_a_worker_that_stops_still_says_what_it_made(make_bench: MakeBench, shelf: Shelf) -> None:
    bench = make_bench({"model": Slot(lambda: shelf["tinyllama-1.1b-chat"], is_preloaded=False)})
    tallies: list[Tally] = []
    work = job("tinyllama-1.1b-chat", max_tokens=1900)
    generation = bench.engine.submit(work, None, 0, Terms(LONG, tell=tallies.append))
    for _ in range(9):
        await anext(generation)
    await asyncio.to_thread(bench.engine.close)

    (tally,) = tallies
    assert tally.ending is Ending.LEFT
    assert tally.made["completion_tokens"] >= 1
    assert tally.made["prompt_tokens"] > 0
