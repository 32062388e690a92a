"""The engine: events in order, one request at a time, and nobody harmed by anybody else."""

import asyncio
import logging
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.engine.engine import Engine, Look
from services.engine.events import Done, Event, Output, Progress, Queued, Started
from services.engine.generation import Generation, Pace, Run, Terms
from services.engine.metrics import EngineMetrics
from services.engine.slots import Slot
from services.engine.stepper import Result
from services.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    QueueFull,
    UnknownModel,
)
from services.schema import MAX_SEED
from tests.services.conftest import (
    LONG,
    Bench,
    Gate,
    MakeBench,
    Script,
    Scripted,
    limits,
    nothing,
    on_demand,
    steps,
    until_stopped,
)

pytestmark = pytest.mark.anyio

SOON = 0.05  # seconds; a deadline that passes while the test looks on


async def reach(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, LONG)


def held(gate: Gate, then: Script = nothing) -> Script:
    def script(run: Run) -> Result:
        gate()
        return then(run)

    return script


def noted(served: list[Run]) -> Script:
    def script(run: Run) -> Result:
        served.append(run)
        return Result()

    return script


async def follow(generation: Generation) -> list[Event]:
    return [event async for event in generation]


def is_ready(bench: Bench) -> bool:
    try:
        bench.engine.check_is_ready()
    except (ModelLoading, ModelUnavailable):
        return False
    return True


def whole(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Queued)]


def alone(deadline: float) -> Generation:
    """A generation in no engine's hands."""
    metrics = EngineMetrics("test", CollectorRegistry()).of("model")
    return Generation(nothing, "model", 0, Terms(deadline), metrics, Pace(), withdraw=lambda generation: None)


# --- events ---


async def test_events_come_in_order(bench: Bench) -> None:
    def script(run: Run) -> Result:
        run.advance(1, 2)
        run.emit("half")
        run.advance(2, 2)
        run.emit("whole")
        run.count(pieces=2)
        return Result("length")

    assert await bench.serve(script) == [
        Queued(0),
        Started(),
        Progress(1, 2),
        Output("half"),
        Progress(2, 2),
        Output("whole"),
        Done({"pieces": 2}, "length"),
    ]


async def test_the_position_counts_whoever_runs_or_waits(bench: Bench) -> None:
    gate = Gate()
    first = bench.submit(held(gate))
    await reach(gate.reached)
    others = [bench.submit(), bench.submit()]
    gate.opened.set()

    assert [(await follow(generation))[0] for generation in (first, *others)] == [Queued(0), Queued(1), Queued(2)]


async def test_requests_run_one_after_the_other_as_they_came(bench: Bench) -> None:
    order: list[int] = []

    def numbered(number: int) -> Script:
        def script(run: Run) -> Result:
            order.append(number)
            return Result()

        return script

    generations = [bench.submit(numbered(number)) for number in range(5)]
    for generation in generations:
        await follow(generation)

    assert order == [0, 1, 2, 3, 4]


async def test_a_generation_that_is_over_has_no_more_events(bench: Bench) -> None:
    generation = bench.submit()

    assert isinstance((await follow(generation))[-1], Done)
    assert await follow(generation) == []


async def test_a_failed_generation_has_no_more_events(bench: Bench) -> None:
    generation = bench.submit(lambda run: Result(str(1 // 0)))

    with pytest.raises(GenerationFailed):
        await follow(generation)
    assert await follow(generation) == []


# --- leaving ---


async def test_who_leaves_before_it_runs_is_never_served(bench: Bench) -> None:
    gate = Gate()
    running = bench.submit(held(gate))
    await reach(gate.reached)
    served: list[Run] = []
    waiting = bench.submit(noted(served))
    waiting.cancel()
    gate.opened.set()

    await follow(running)
    await bench.serve()

    assert served == []
    assert bench.endings() == {"complete": 2, "left": 1, "failed": 0, "late": 0}
    assert bench.count("iterations_after_leave_total") == 0


async def test_who_leaves_the_queue_leaves_no_request_behind(bench: Bench) -> None:
    gate = Gate()
    running = bench.submit(held(gate))
    await reach(gate.reached)
    request = steps(1)
    is_freed = threading.Event()
    weakref.finalize(request, is_freed.set)
    waiting = bench.submit(request)
    assert bench.queue_length == 1

    waiting.cancel()
    assert bench.queue_length == 0
    del waiting, request
    await reach(is_freed)  # while the other still runs

    gate.opened.set()
    await follow(running)


async def test_who_leaves_while_it_runs_stops_the_model_at_its_next_iteration(bench: Bench) -> None:
    gate = Gate()
    stopped: list[int] = []

    def script(run: Run) -> Result:
        run.advance(1, 9)
        gate()
        for step in range(2, 10):
            try:
                run.advance(step, 9)
            except Cancelled:
                stopped.append(step)
                raise
        return Result()

    generation = bench.submit(script)
    await reach(gate.reached)
    generation.cancel()
    gate.opened.set()
    await bench.serve()

    assert stopped == [2]
    assert bench.count("iterations_total") == 2
    assert bench.count("iterations_after_leave_total") == 1
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


async def test_leaving_after_the_end_changes_nothing(bench: Bench) -> None:
    generation = bench.submit(steps(3))
    await follow(generation)

    generation.cancel()
    await bench.serve()

    assert bench.endings() == {"complete": 2, "left": 0, "failed": 0, "late": 0}
    assert bench.count("iterations_after_leave_total") == 0


async def test_leaving_twice_counts_once(bench: Bench) -> None:
    gate = Gate()
    running = bench.submit(held(gate, until_stopped))
    await reach(gate.reached)
    waiting = bench.submit()
    for generation in (running, waiting, running, waiting):
        generation.cancel()
    gate.opened.set()
    await bench.serve()

    assert bench.endings() == {"complete": 1, "left": 2, "failed": 0, "late": 0}


async def test_who_leaves_while_its_model_loads_does_not_start_it(make_bench: MakeBench) -> None:
    gate = Gate()

    def make() -> Scripted:
        gate()
        return Scripted()

    bench = make_bench({"model": on_demand(make)})
    served: list[Run] = []
    generation = bench.submit(noted(served))
    await reach(gate.reached)
    generation.cancel()
    gate.opened.set()
    await bench.serve()

    assert served == []
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


# --- deadlines ---


async def test_a_deadline_passes_also_behind_a_long_one(bench: Bench) -> None:
    gate = Gate()
    running = bench.submit(held(gate))
    await reach(gate.reached)
    waiting = bench.submit(deadline=SOON)

    with pytest.raises(DeadlineExceeded):
        await follow(waiting)
    assert bench.endings() == {"complete": 0, "left": 0, "failed": 0, "late": 1}
    assert bench.queue_length == 0

    gate.opened.set()
    assert isinstance((await follow(running))[-1], Done)


async def test_a_deadline_stops_a_running_model_and_the_next_is_served(bench: Bench) -> None:
    generation = bench.submit(until_stopped, deadline=SOON)

    with pytest.raises(DeadlineExceeded):
        await follow(generation)
    assert isinstance((await bench.serve())[-1], Done)
    assert bench.endings() == {"complete": 1, "left": 0, "failed": 0, "late": 1}


async def test_a_deadline_stops_the_model_even_if_nobody_follows(bench: Bench) -> None:
    bench.submit(until_stopped, deadline=SOON)
    await bench.serve()

    assert bench.endings() == {"complete": 1, "left": 0, "failed": 0, "late": 1}


async def test_a_deadline_that_passed_in_the_queue_starts_nothing(bench: Bench) -> None:
    gate = Gate()
    running = bench.submit(held(gate))
    await reach(gate.reached)
    served: list[Run] = []
    late = bench.submit(noted(served), deadline=1e-9)  # and nobody follows it yet
    gate.opened.set()
    await follow(running)
    await bench.serve()

    assert served == []
    with pytest.raises(DeadlineExceeded):
        await follow(late)
    assert bench.endings() == {"complete": 2, "left": 0, "failed": 0, "late": 1}


async def test_what_stops_a_generation_first_is_what_stopped_it() -> None:
    late, left = alone(deadline=0), alone(deadline=LONG)
    with pytest.raises(DeadlineExceeded):
        await follow(late)  # who follows notices first, and then leaves
    late.cancel()
    left.cancel()

    with pytest.raises(DeadlineExceeded):
        late.advance(1, 2)
    with pytest.raises(Cancelled):
        left.advance(1, 2)


async def test_a_result_that_was_made_in_time_is_told_to_a_slow_follower() -> None:
    generation = alone(deadline=0)
    generation.count(steps=1)
    generation.finish("stop")
    await asyncio.sleep(0)  # one turn of the loop: the event is there

    assert await follow(generation) == [Done({"steps": 1})]


# --- failures ---


async def test_a_failure_harms_only_its_own_request(bench: Bench) -> None:
    def broken(run: Run) -> Result:
        run.advance(1, 2)
        raise RuntimeError("the shape of /secret/weights is wrong")

    generations = [bench.submit(steps(2)), bench.submit(broken), bench.submit(steps(2))]

    assert isinstance((await follow(generations[0]))[-1], Done)
    with pytest.raises(GenerationFailed) as failure:
        await follow(generations[1])
    assert "secret" not in failure.value.message
    assert isinstance((await follow(generations[2]))[-1], Done)
    assert bench.endings() == {"complete": 2, "left": 0, "failed": 1, "late": 0}


async def test_what_a_model_refuses_is_told_in_its_own_words(bench: Bench) -> None:
    def refuse(run: Run) -> Result:
        raise InvalidRequest("there is no voice 'x'", param="voice")

    with pytest.raises(InvalidRequest, match="no voice") as refusal:
        await bench.serve(refuse)
    assert refusal.value.param == "voice"


async def test_a_refusal_keeps_nothing_of_what_the_model_held(bench: Bench) -> None:
    is_freed = threading.Event()

    def refuse(run: Run) -> Result:
        tensor = steps(1)  # stands for gigabytes
        weakref.finalize(tensor, is_freed.set)
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest) as refusal:
        await bench.serve(refuse)
    await reach(is_freed)
    assert refusal.value.message == "no"  # still held


async def test_an_idle_engine_keeps_no_finished_request(bench: Bench) -> None:
    is_freed = threading.Event()
    request = steps(1)
    weakref.finalize(request, is_freed.set)
    await bench.serve(request)
    del request

    await reach(is_freed)


# --- admission ---


async def test_a_full_queue_counts_only_those_who_wait(make_bench: MakeBench) -> None:
    bench = make_bench(queue_size=2)
    gate = Gate()
    running = bench.submit(held(gate))
    await reach(gate.reached)
    leaving, late = bench.submit(), bench.submit(deadline=SOON)

    with pytest.raises(QueueFull) as refusal:
        bench.submit()
    assert refusal.value.retry_after is not None
    leaving.cancel()
    with pytest.raises(DeadlineExceeded):
        await follow(late)
    admitted = [bench.submit(), bench.submit()]
    with pytest.raises(QueueFull):
        bench.submit()

    gate.opened.set()
    for generation in (running, *admitted):
        await follow(generation)


async def test_the_queue_length_is_exact(bench: Bench) -> None:
    gate = Gate()
    running = bench.submit(held(gate))
    await reach(gate.reached)
    assert bench.queue_length == 0  # who runs does not wait
    waiting = [bench.submit() for _ in range(3)]
    assert bench.queue_length == 3
    waiting[1].cancel()
    assert bench.queue_length == 2

    gate.opened.set()
    for generation in (running, waiting[0], waiting[2]):
        await follow(generation)
    assert bench.queue_length == 0


async def test_an_unknown_model_is_refused_by_naming_the_known(make_bench: MakeBench) -> None:
    bench = make_bench({"one": on_demand(), "two": on_demand()})

    with pytest.raises(UnknownModel, match="one, two") as refusal:
        bench.submit(model="three")
    assert refusal.value.param == "model"
    with pytest.raises(UnknownModel):
        bench.engine.defaults("three")


async def test_the_first_model_is_the_default(make_bench: MakeBench) -> None:
    bench = make_bench({"one": Slot(Scripted, is_preloaded=False, defaults={"steps": 1}), "two": on_demand()})

    assert bench.submit().model == "one"
    assert bench.engine.defaults(None) == {"steps": 1}


async def test_a_seed_is_kept_or_drawn_in_range_whatever_the_global_generator(bench: Bench) -> None:
    assert bench.engine.submit(nothing, None, 7, Terms(LONG)).seed == 7
    drawn = set()
    for _ in range(3):
        random.seed(0)
        drawn.add(bench.submit().seed)

    assert len(drawn) == 3
    assert all(0 <= seed <= MAX_SEED for seed in drawn)
    assert max(drawn) > 2**32  # all of the range


# --- loading ---


def loading(gate: Gate, model: Scripted | None = None) -> Callable[[], Scripted]:
    def make() -> Scripted:
        gate()
        return model or Scripted()

    return make


async def test_while_a_preloaded_model_loads_it_says_when_to_come_back(make_bench: MakeBench) -> None:
    gate = Gate()
    bench = make_bench({"model": Slot(loading(gate), is_preloaded=True), "other": on_demand()})
    await reach(gate.reached)

    assert not is_ready(bench)
    with pytest.raises(ModelLoading) as refusal:
        bench.submit()
    assert refusal.value.status == 503
    assert refusal.value.retry_after is not None

    gate.opened.set()
    await bench.serve(model="other")  # behind the loading
    assert is_ready(bench)
    assert isinstance((await bench.serve())[-1], Done)


async def test_a_model_on_demand_loads_with_its_first_request_and_once(make_bench: MakeBench) -> None:
    made: list[str] = []

    def make() -> Scripted:
        made.append(threading.current_thread().name)
        return Scripted()

    bench = make_bench({"model": on_demand(make)})
    assert made == []
    first, second = bench.submit(), bench.submit()
    await follow(first)
    await follow(second)

    assert made == ["loader"]
    assert is_ready(bench)


@pytest.mark.parametrize("is_preloaded", [True, False])
async def test_a_failed_load_is_told_to_everyone_and_not_fatal(make_bench: MakeBench, is_preloaded: bool) -> None:
    attempts: list[int] = []
    gate = Gate()

    def make() -> Scripted:
        gate()
        attempts.append(1)
        raise OSError("/secret/model.safetensors is truncated")

    bench = make_bench({"model": Slot(make, is_preloaded), "other": on_demand()})
    waiting = [] if is_preloaded else [bench.submit(), bench.submit()]
    gate.opened.set()
    for generation in waiting:
        with pytest.raises(ModelUnavailable, match="could not be loaded"):
            await follow(generation)
    assert isinstance((await bench.serve(model="other"))[-1], Done)

    failures = []
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match="could not be loaded") as refusal:
            bench.submit()
        failures.append(refusal.value)
    assert "secret" not in failures[0].message
    assert failures[0] is not failures[1]  # each raise would lengthen the one's traceback, and keep its frames
    assert len(attempts) == 1
    assert is_ready(bench) is not is_preloaded
    assert bench.endings()["failed"] == len(waiting)


async def test_loading_holds_up_nobody_who_asks_for_another_model(make_bench: MakeBench) -> None:
    gate = Gate()
    bench = make_bench({"model": on_demand(), "slow": on_demand(loading(gate))})
    await bench.serve()
    waiting = bench.submit(model="slow")
    await reach(gate.reached)

    for _ in range(3):
        assert isinstance((await bench.serve(steps(2)))[-1], Done)
    assert bench.engine.look("slow").state == "loading"
    assert bench.count("queue_length", "slow") == 1
    gate.opened.set()
    assert isinstance((await follow(waiting))[-1], Done)
    assert bench.engine.look("slow").state == "ready"


async def test_a_request_in_progress_goes_on_while_another_model_loads(make_bench: MakeBench) -> None:
    load, run = Gate(), Gate()
    bench = make_bench({"model": on_demand(), "slow": on_demand(loading(load))})
    running = bench.submit(held(run, steps(2)))
    await reach(run.reached)
    waiting = bench.submit(model="slow")
    run.opened.set()
    await follow(running)
    await reach(load.reached)
    waiting.cancel()
    load.opened.set()

    assert isinstance((await bench.serve(model="slow"))[-1], Done)


async def test_models_are_loaded_one_after_the_other_as_they_were_asked_for(make_bench: MakeBench) -> None:
    gate = Gate()
    order: list[str] = []

    def make(name: str) -> Callable[[], Scripted]:
        def load() -> Scripted:
            gate()
            order.append(name)
            return Scripted()

        return load

    bench = make_bench({name: on_demand(make(name)) for name in "abc"})
    asked = [bench.submit(model=name) for name in "bcab"]
    gate.opened.set()
    await asyncio.gather(*map(follow, asked))

    assert order == ["b", "c", "a"]


async def test_a_model_that_fails_takes_down_no_other(make_bench: MakeBench) -> None:
    def fail() -> Scripted:
        raise ModelUnavailable("there are no files")

    slots = {"bad": Slot(fail, is_preloaded=True), "model": Slot(Scripted, is_preloaded=True)}
    bench = make_bench({**slots, "other": on_demand()})
    await bench.serve(model="other")  # behind the loading

    assert is_ready(bench)
    assert isinstance((await bench.serve(model="model"))[-1], Done)
    with pytest.raises(ModelUnavailable, match="there are no files"):
        bench.submit(model="bad")
    assert bench.engine.look("bad") == Look("failed", "there are no files", None, None)


async def test_what_a_model_takes_is_known_once_it_is_there(make_bench: MakeBench) -> None:
    bench = make_bench({"model": Slot(Scripted, is_preloaded=False, weigh=lambda stepper: 7)})

    assert bench.engine.look("model") == Look("cold", None, None, None)
    await bench.serve()
    assert bench.engine.look("model") == Look("ready", None, 7, None)


async def test_why_a_model_is_unavailable_is_told_in_its_own_words(make_bench: MakeBench) -> None:
    def make() -> Scripted:
        raise ModelUnavailable("accept the licence first")

    bench = make_bench({"model": on_demand(make)})

    with pytest.raises(ModelUnavailable, match=r"^accept the licence first$"):
        await bench.serve()
    with pytest.raises(ModelUnavailable, match=r"^accept the licence first$"):
        bench.submit()


async def test_a_load_that_may_do_better_later_is_tried_again(make_bench: MakeBench) -> None:
    outcomes = iter([ModelUnavailable("no network", retry_after=30), None])

    def make() -> Scripted:
        if (error := next(outcomes)) is not None:
            raise error
        return Scripted()

    bench = make_bench({"model": on_demand(make)})

    with pytest.raises(ModelUnavailable, match="no network"):
        await bench.serve()
    assert isinstance((await bench.serve())[-1], Done)


async def test_a_failed_load_frees_what_it_had_loaded(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    is_freed = threading.Event()

    def make() -> Scripted:
        half = threading.Event()
        weakref.finalize(half, is_freed.set)
        raise MemoryError

    caplog.set_level(logging.CRITICAL, "atelier.engine")  # pytest keeps the log's records, and they the traceback
    bench = make_bench({"model": Slot(make, is_preloaded=True), "other": on_demand()})
    await bench.serve(model="other")

    await reach(is_freed)


# --- going down ---


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "engine"}


async def test_closing_ends_everyone_and_joins_the_thread(make_bench: MakeBench) -> None:
    before = engine_threads()
    bench = make_bench()
    gate = Gate()
    running = bench.submit(held(gate, until_stopped))
    await reach(gate.reached)
    waiting = bench.submit()
    closing = asyncio.create_task(asyncio.to_thread(bench.engine.close))

    with pytest.raises(ModelLoading, match="restarting"):
        await follow(waiting)
    gate.opened.set()
    with pytest.raises(ModelLoading, match="restarting") as told:
        await follow(running)
    await closing

    assert told.value.retry_after is not None
    assert engine_threads() == before
    assert not is_ready(bench)
    assert bench.endings() == {"complete": 0, "left": 2, "failed": 0, "late": 0}
    with pytest.raises(ModelLoading, match="restarting"):
        bench.submit()


async def test_closing_waits_for_the_iteration_and_is_not_ready_meanwhile(make_bench: MakeBench) -> None:
    bench = make_bench()
    gate, is_closed = Gate(), threading.Event()
    seen: list[bool] = []

    def script(run: Run) -> Result:
        gate()
        seen.extend((is_closed.wait(10 * SOON), is_ready(bench)))  # a long iteration
        run.advance(1, 2)
        return Result()

    def close() -> None:
        bench.engine.close()
        is_closed.set()

    running = bench.submit(script)
    await reach(gate.reached)
    waiting = bench.submit()
    closing = asyncio.create_task(asyncio.to_thread(close))
    with pytest.raises(ModelLoading):
        await follow(waiting)  # the engine is closing from here on
    gate.opened.set()
    with pytest.raises(ModelLoading):
        await follow(running)
    await closing

    assert seen == [False, False]


async def test_closing_an_idle_engine_joins_the_thread(make_bench: MakeBench) -> None:
    before = engine_threads()
    bench = make_bench()
    await bench.serve()
    assert is_ready(bench)

    bench.engine.close()
    bench.engine.close()

    assert engine_threads() == before
    assert not is_ready(bench)


async def test_closing_before_the_start_ends_everyone() -> None:
    engine = Engine({"model": on_demand()}, EngineMetrics("test", CollectorRegistry()), limits())
    generation = engine.submit(nothing, None, None, Terms(LONG))
    engine.close()

    with pytest.raises(ModelLoading, match="restarting"):
        await follow(generation)


async def test_closing_while_a_model_loads_does_not_wait_for_it_nor_load_the_next(make_bench: MakeBench) -> None:
    gate = Gate()
    loaded: list[str] = []

    def make_next() -> Scripted:
        loaded.append("next")
        return Scripted()

    before = engine_threads()
    slots = {"model": Slot(loading(gate), is_preloaded=True), "next": Slot(make_next, is_preloaded=True)}
    bench = make_bench({**slots, "other": on_demand()})
    await reach(gate.reached)
    waiting = bench.submit(model="other")

    bench.engine.close(patience=0)

    with pytest.raises(ModelLoading, match="restarting"):
        await follow(waiting)
    await asyncio.gather(*(asyncio.to_thread(thread.join, LONG) for thread in engine_threads() - before))
    loaders = [thread for thread in threading.enumerate() if thread.name == "loader"]
    assert len(loaders) == 1
    gate.opened.set()
    await asyncio.to_thread(loaders[0].join, LONG)
    assert not loaders[0].is_alive()
    assert engine_threads() == before
    assert loaded == []


# --- loops ---


def test_a_follower_whose_loop_is_closed_harms_nobody(make_bench: MakeBench) -> None:
    bench = make_bench()
    gate = Gate()

    async def submit() -> None:
        bench.submit(held(gate, steps(3)))

    asyncio.run(submit())  # the loop is closed when it returns
    assert gate.reached.wait(LONG)
    gate.opened.set()

    assert isinstance(asyncio.run(bench.serve())[-1], Done)
    assert bench.endings()["complete"] == 2


def test_several_loops_follow_one_engine(make_bench: MakeBench) -> None:
    bench = make_bench(queue_size=64)
    results: list[list[Event]] = []

    async def serve_some() -> None:
        for _ in range(10):
            results.append(await bench.serve(steps(2)))

    threads = [threading.Thread(target=asyncio.run, args=(serve_some(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert len(results) == 40
    assert all(whole(events) == [Started(), Progress(1, 2), Progress(2, 2), Done({"steps": 2})] for events in results)
    assert bench.endings() == {"complete": 40, "left": 0, "failed": 0, "late": 0}


async def test_two_engines_run_at_once(make_bench: MakeBench) -> None:
    first, second = make_bench(), make_bench()
    gate = Gate()
    running = first.submit(held(gate))
    await reach(gate.reached)

    assert isinstance((await second.serve())[-1], Done)

    gate.opened.set()
    await follow(running)
    assert (first.endings()["complete"], second.endings()["complete"]) == (1, 1)


# --- metrics ---


async def test_every_iteration_is_counted_and_measured(make_bench: MakeBench) -> None:
    bench = make_bench({"model": on_demand(), "other": on_demand()})
    assert bench.endings() == {"complete": 0, "left": 0, "failed": 0, "late": 0}  # shown from the beginning

    await bench.serve(steps(3))
    await bench.serve(steps(4))
    await bench.serve(steps(5), model="other")

    assert bench.count("iterations_total") == 7
    assert bench.count("iteration_seconds_count") == 7
    assert bench.count("iterations_total", "other") == 5
    assert bench.endings() == {"complete": 2, "left": 0, "failed": 0, "late": 0}
    assert bench.endings("other") == {"complete": 1, "left": 0, "failed": 0, "late": 0}


def test_threads_that_submit_and_leave_at_random_leave_the_engine_whole(make_bench: MakeBench) -> None:
    bench = make_bench(queue_size=1000)

    async def come_and_go(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(50):
            generation = bench.submit(steps(dice.randrange(4)))
            if dice.random() < 0.5:
                if dice.random() < 0.5:
                    await anext(generation)
                generation.cancel()
            else:
                await follow(generation)

    threads = [threading.Thread(target=asyncio.run, args=(come_and_go(seed),)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    asyncio.run(bench.serve())

    endings: dict[str, Any] = bench.endings()
    assert sum(endings.values()) == 201
    assert endings["failed"] == 0
    assert bench.queue_length == 0
