"""The iteration scheduler: who shares a forward, who is next, and that one's trouble is nobody else's."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.engine import generation as generation_module
from services.engine.batching import BatchSizer
from services.engine.events import Done, Event, Output, Preview, Progress, Queued, Started
from services.engine.generation import Generation, Pace, Run, Terms
from services.engine.metrics import EngineMetrics
from services.engine.queue import FairQueue
from services.engine.slots import Slot
from services.engine.stepper import LEFT_OUT, Result
from services.errors import DeadlineExceeded, GenerationFailed, ModelLoading, ModelUnavailable, QueueFull
from tests.services.conftest import LONG, Bench, Gate, MakeBench, Scripted

pytestmark = pytest.mark.anyio

NEVER = -1
TERMS = Terms(deadline=LONG)


@dataclass(eq=False)
class Walk:
    """A request of the tests' own model: so many steps, which it may share with others of its kind."""

    name: str
    steps: int = 3
    kind: str = "walk"
    cost: int = 1
    breaks_forward: bool = False  # whatever the company
    breaks_at: int = NEVER  # its own part of this step
    step: int = 0
    run: Run | None = None


@dataclass
class Walker:
    """Walks; counts what it sees, and stops at the gate of a step."""

    max_active: int = 4
    always_shares: bool = False
    largest: int = 100  # batch that memory suffices for
    room: int = 100  # how many have a part in a forward
    forwards: list[tuple[str, ...]] = field(default_factory=list)
    gates: dict[int, Gate] = field(default_factory=dict)  # by the number of the forward
    threads: set[str] = field(default_factory=set)

    def cost(self, request: Walk) -> int:
        return request.cost

    def admit(self, request: Walk, seed: int, run: Run) -> Walk:
        request.run = run
        return request

    def key(self, state: Walk) -> str | None:
        return state.kind or None

    def forward(self, states: Sequence[Walk]) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        self.forwards.append(tuple(state.name for state in states[: self.room]))
        gate = self.gates.get(len(self.forwards))
        if gate is not None:
            gate()
        if len(states) > self.largest:
            raise MemoryError
        if any(state.breaks_forward for state in states):
            raise ZeroDivisionError
        return [f"{state.name}{state.step}" if place < self.room else LEFT_OUT for place, state in enumerate(states)]

    def advance(self, state: Walk, row: str) -> Result | None:
        assert state.run is not None
        if state.step == state.breaks_at:
            raise ZeroDivisionError
        state.run.emit(row)
        state.run.count(steps=1)
        state.step += 1
        state.run.advance(state.step, state.steps)
        return Result() if state.step == state.steps else None

    def preview(self, state: Walk) -> Any:
        return np.full((2, 2, 3), state.step, np.uint8)


@pytest.fixture
def walker() -> Walker:
    return Walker()


@pytest.fixture
def bench(walker: Walker, make_bench: MakeBench) -> Bench:
    return make_bench({"model": Slot(lambda: walker, is_preloaded=False)})


def submit(bench: Bench, walk: Walk, **terms: Any) -> Generation:
    return bench.engine.submit(walk, None, 0, Terms(**{"deadline": LONG, **terms}))


async def follow(generation: Generation) -> list[Event]:
    return [event async for event in generation]


async def reach(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, LONG)


def steps_of(walk: Walk) -> list[str]:
    return [f"{walk.name}{step}" for step in range(walk.steps)]


def made(events: Sequence[Event]) -> list[Any]:
    return [event.data for event in events if isinstance(event, Output)]


async def held(bench: Bench, walker: Walker, *walks: Walk, first: Walk | None = None) -> list[Generation]:
    """Submit all while the first is at its first step, so that they meet."""
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, first or Walk("first", steps=1))]
    await reach(gate)
    generations += [submit(bench, walk) for walk in walks]
    gate.opened.set()
    return generations


# --- sharing ---


async def test_requests_of_a_kind_share_forwards_and_leave_when_they_are_through(bench: Bench, walker: Walker) -> None:
    walks = [Walk("a", 6), Walk("b", 2), Walk("c", 5)]
    generations = await held(bench, walker, *walks)
    results = await asyncio.gather(*map(follow, generations))

    for walk, events in zip(walks, results[1:], strict=True):
        assert made(events) == steps_of(walk)
        assert events[-1] == Done({"steps": walk.steps})
        progress = [(event.step, event.steps) for event in events if isinstance(event, Progress)]
        assert progress == [(step, walk.steps) for step in range(1, walk.steps + 1)]
        assert next(type(event) for event in events if not isinstance(event, Queued)) is Started
    assert len(walker.forwards) < 1 + 6 + 2 + 5
    assert max(map(len, walker.forwards)) > 1
    assert walker.threads == {"engine"}
    assert bench.count("batch_size_sum") == 1 + 6 + 2 + 5
    assert bench.count("iterations_total") == 1 + 6 + 2 + 5


async def test_who_comes_later_joins_at_the_next_step(bench: Bench, walker: Walker) -> None:
    gate = walker.gates[3] = Gate()
    early = submit(bench, Walk("early", 8))
    await reach(gate)
    late = submit(bench, Walk("late", 2))
    gate.opened.set()
    await asyncio.gather(follow(early), follow(late))

    assert walker.forwards[:3] == [("early",)] * 3
    assert ("early", "late") in walker.forwards[3:]
    assert walker.forwards[-1] == ("early",)  # the late one is through long before


async def test_kinds_take_turns(bench: Bench, walker: Walker) -> None:
    generations = await held(bench, walker, Walk("a", 4, "one"), Walk("b", 4, "two"), Walk("c", 4, ""))
    await asyncio.gather(*map(follow, generations))

    assert all(set(walker.forwards[start : start + 3]) == {("a",), ("b",), ("c",)} for start in (1, 4, 7, 10))


async def test_no_more_are_in_progress_than_the_model_allows(bench: Bench, walker: Walker) -> None:
    walks = [Walk(str(number), 2) for number in range(8)]
    generations = await held(bench, walker, *walks, first=Walk("first", 6))
    await asyncio.gather(*map(follow, generations))

    assert max(map(len, walker.forwards)) <= walker.max_active
    seen: set[str] = set()
    for forward in walker.forwards:
        seen |= set(forward)
        assert len(seen - {walk.name for walk in walks if walk.step == walk.steps}) <= walker.max_active


async def test_memory_bounds_who_is_in_progress_and_nobody_is_overtaken(make_bench: MakeBench) -> None:
    walker = Walker()
    bench = make_bench({"model": Slot(lambda: walker, is_preloaded=False)}, memory_bytes=10)
    generations = await held(
        bench, walker, Walk("large", 3, cost=8), Walk("small", 1, cost=1), first=Walk("first", 3, cost=4)
    )
    huge = submit(bench, Walk("huge", 2, cost=1000))
    await asyncio.gather(*map(follow, [*generations, huge]))

    assert walker.forwards[:3] == [("first",)] * 3
    assert not any({"first", "large"} <= set(forward) for forward in walker.forwards)
    assert first_forward(walker, "large") <= first_forward(walker, "small")  # which would have fitted before
    assert walker.forwards[-2:] == [("huge",)] * 2  # alone, since it is alone it may


async def test_nobody_is_kept_from_joining_while_a_cost_is_found_out(bench: Bench, walker: Walker) -> None:
    finding, gate = Gate(), walker.gates.setdefault(1, Gate())
    right = walker.cost

    def cost(request: Walk) -> int:
        if request.name == "long":  # to cut into tokens
            finding()
        return right(request)

    walker.cost = cost  # type: ignore[method-assign]
    generations = [submit(bench, Walk("first", 3))]
    await reach(gate)
    generations.append(submit(bench, Walk("long", 1)))
    gate.opened.set()
    await reach(finding)
    generations.append(submit(bench, Walk("late", 1)))  # would hang here
    finding.opened.set()
    await asyncio.gather(*map(follow, generations))

    assert bench.endings() == {"complete": 3, "left": 0, "failed": 0, "late": 0}


def first_forward(walker: Walker, name: str) -> int:
    return next(number for number, forward in enumerate(walker.forwards) if name in forward)


# --- who is next ---


async def test_the_higher_priority_goes_first_and_callers_take_turns(bench: Bench, walker: Walker) -> None:
    walker.max_active = 1
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, Walk("first", 1))]
    await reach(gate)
    waiting: dict[str, dict[str, Any]] = {
        "greedy1": {"caller": "greedy"},
        "greedy2": {"caller": "greedy"},
        "greedy3": {"caller": "greedy"},
        "modest1": {"caller": "modest"},
        "late": {"caller": "late"},
        "urgent": {"caller": "greedy", "priority": 1},
        "idle": {"caller": "modest", "priority": -1},
    }
    for name, terms in waiting.items():
        generations.append(submit(bench, Walk(name, 1), **terms))
    gate.opened.set()
    await asyncio.gather(*map(follow, generations))

    order = [name for (name,) in walker.forwards]
    assert order == ["first", "urgent", "greedy1", "modest1", "late", "greedy2", "greedy3", "idle"]


async def test_everyone_hears_how_many_are_ahead(bench: Bench, walker: Walker) -> None:
    walker.max_active = 1
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, Walk("first", 1))]
    await reach(gate)
    generations += [submit(bench, Walk(str(number), 1)) for number in range(3)]
    gate.opened.set()
    *_, last = await asyncio.gather(*map(follow, generations))

    assert [event.position for event in last if isinstance(event, Queued)] == [3, 2, 1]


async def test_who_is_overtaken_hears_of_it(bench: Bench, walker: Walker) -> None:
    walker.max_active = 1
    gate = walker.gates[1] = Gate()
    running = submit(bench, Walk("running", 1))
    await reach(gate)
    waiting, urgent = submit(bench, Walk("waiting", 1)), submit(bench, Walk("urgent", 1), priority=1)
    gate.opened.set()
    _, told, told_first = await asyncio.gather(*map(follow, (running, waiting, urgent)))

    assert [event.position for event in told if isinstance(event, Queued)] == [1, 2, 1]
    assert [event.position for event in told_first if isinstance(event, Queued)] == [1]
    assert (waiting.position, urgent.position) == (1, 1)


async def test_a_full_queue_says_when_there_will_be_room_by_the_pace_so_far(
    walker: Walker, make_bench: MakeBench
) -> None:
    walker.max_active = 1
    bench = make_bench({"model": Slot(lambda: walker, is_preloaded=False)}, queue_size=1)
    gate = walker.gates[3] = Gate()
    running = submit(bench, Walk("running", 100))
    await reach(gate)
    waiting = submit(bench, Walk("waiting", 1))
    running.eta = 41.3
    with pytest.raises(QueueFull) as refusal:
        submit(bench, Walk("refused", 1))
    with pytest.raises(QueueFull):
        bench.engine.check_for_place()
    gate.opened.set()
    await asyncio.gather(follow(running), follow(waiting))
    bench.engine.check_for_place()

    assert refusal.value.retry_after == 42


async def test_callers_in_progress_take_turns_where_not_all_can_share(
    bench: Bench, walker: Walker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSizer, "limit", lambda self, longest: 2)
    walker.max_active = 8
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, Walk("first", 1))]
    await reach(gate)
    generations += [submit(bench, Walk(f"greedy{number}", 4), caller="greedy") for number in range(4)]
    generations.append(submit(bench, Walk("modest", 2), caller="modest"))
    generations.append(submit(bench, Walk("also", 2), caller="also"))
    generations.append(submit(bench, Walk("urgent", 1), caller="greedy", priority=1))
    gate.opened.set()
    await asyncio.gather(*map(follow, generations))

    # The urgent one first, the three callers in turn, and a caller's own one after the other.
    assert walker.forwards[1:6] == [
        ("urgent", "greedy0"),
        ("modest", "also"),
        ("greedy0", "modest"),
        ("also", "greedy0"),
        ("greedy0", "greedy1"),
    ]


async def test_who_had_no_part_in_a_forward_has_the_next(bench: Bench, walker: Walker) -> None:
    walker.room, walker.max_active, walker.always_shares = 1, 5, True
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, Walk("first", 1))]
    await reach(gate)
    generations += [submit(bench, Walk(f"greedy{number}", 2), caller="greedy") for number in range(2)]
    generations += [submit(bench, Walk("modest", 2), caller="modest")]
    gate.opened.set()
    told = await asyncio.gather(*map(follow, generations))

    assert walker.forwards[1:] == [
        ("greedy0",), ("modest",), ("greedy1",), ("modest",), ("greedy0",), ("greedy1",),
    ]  # fmt: skip
    assert made(told[1]) == ["greedy00", "greedy01"]


async def test_what_a_request_will_take_is_found_out_while_the_model_works(bench: Bench, walker: Walker) -> None:
    assert await bench.engine.estimate(Walk("early"), None, TERMS) is None  # nothing is loaded yet
    gate = walker.gates[1] = Gate()
    busy = submit(bench, Walk("busy", 1))
    await reach(gate)

    assert await bench.engine.estimate(Walk("other", cost=7), None, TERMS) == 7
    gate.opened.set()
    await follow(busy)


async def test_where_everybody_is_to_go_on_sharing_is_not_measured(
    bench: Bench, walker: Walker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSizer, "limit", lambda self, longest: 1)
    walker.always_shares = True
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, Walk("first", 1))]
    await reach(gate)
    generations += [submit(bench, Walk(name, 2)) for name in "abcd"]
    gate.opened.set()
    await asyncio.gather(*map(follow, generations))

    assert walker.forwards[1:] == [tuple("abcd")] * 2


async def test_and_where_memory_does_not_suffice_for_all_nobody_stands_still(bench: Bench, walker: Walker) -> None:
    walker.always_shares, walker.largest = True, 2
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, Walk("first", 1))]
    await reach(gate)
    generations += [submit(bench, Walk(name, 4)) for name in "abcd"]  # of one caller
    gate.opened.set()
    await asyncio.gather(*map(follow, generations))

    taken = walker.forwards[2:]  # after the one that was too large
    assert taken == [("a", "b"), ("c", "d")] * 4


async def test_who_waits_hears_when_somebody_ahead_is_through_though_nobody_is_taken_up(
    bench: Bench, walker: Walker
) -> None:
    walker.max_active = 2
    short, long = Walk("short", 2), Walk("long", 8, cost=int(1e9) - 1)
    gate = walker.gates[1] = Gate()
    generations = [submit(bench, short), submit(bench, long)]
    await reach(gate)
    last = submit(bench, Walk("last", 1, cost=int(1e9)))  # needs all memory
    gate.opened.set()
    *_, told = await asyncio.gather(*map(follow, [*generations, last]))

    assert [event.position for event in told if isinstance(event, Queued)] == [2, 1]


class Ticket:
    def __init__(self, caller: str, priority: int) -> None:
        self.caller = caller
        self.priority = priority


tickets = st.lists(st.builds(Ticket, st.sampled_from("abc"), st.integers(-1, 1)), min_size=1, max_size=30)


@given(tickets=tickets, arrivals=st.lists(st.integers(0, 3), max_size=40))
def test_priorities_go_first_and_a_callers_own_requests_keep_their_order(
    tickets: list[Ticket], arrivals: list[int]
) -> None:
    queue: FairQueue[Ticket] = FairQueue()
    served: list[Ticket] = []
    coming = list(tickets)
    steps = [*arrivals, *([0] * len(tickets))]
    for count in steps:
        for ticket in coming[:count]:
            queue.push(ticket)
        del coming[:count]
        if len(queue):
            waiting = queue.in_order()
            queue.serve(waiting[0])
            served.append(waiting[0])
            first = waiting[0]
            assert all(other.priority <= first.priority for other in waiting)
            ahead = [other for other in waiting if other.priority == first.priority and other.caller == first.caller]
            assert tickets.index(first) == min(map(tickets.index, ahead))  # a caller's own come in their order
    assert len(served) + len(queue) + len(coming) == len(tickets)


@given(counts=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 6), min_size=1))
def test_callers_are_served_in_turns_however_many_each_sends(counts: dict[str, int]) -> None:
    queue: FairQueue[Ticket] = FairQueue()
    for caller, count in counts.items():
        for _ in range(count):
            queue.push(Ticket(caller, 0))
    served: list[str] = []
    while len(queue):
        first = queue.in_order()[0]
        queue.serve(first)
        served.append(first.caller)

    for number, caller in enumerate(served):
        turn = served[: number + 1].count(caller)
        waiting = [other for other, count in counts.items() if served[:number].count(other) < count]
        assert all(served[:number].count(other) >= turn - 1 for other in waiting)  # nobody is two turns behind


def served(queue: FairQueue[Ticket]) -> list[Ticket]:
    order = []
    while len(queue):
        order.append(queue.in_order()[0])
        queue.serve(order[-1])
    return order


def test_what_is_served_at_one_priority_moves_no_turn_at_another() -> None:
    queue: FairQueue[Ticket] = FairQueue()
    greedy = [Ticket("greedy", 0) for _ in range(3)]
    urgent = [Ticket("urgent", 1) for _ in range(5)]
    modest = Ticket("modest", 0)
    for ticket in (*greedy, *urgent):
        queue.push(ticket)
    for ticket in urgent:
        assert queue.in_order()[0] is ticket
        queue.serve(ticket)
    queue.push(modest)

    assert served(queue) == [greedy[0], modest, *greedy[1:]]


def test_who_waits_is_sorted_once_until_that_changes() -> None:
    """The engine asks before every forward."""
    queue: FairQueue[Ticket] = FairQueue()
    a, b, c = (Ticket(caller, 0) for caller in "abc")
    for ticket in (a, b, c):
        queue.push(ticket)
        assert ticket in queue.in_order()
    assert queue.in_order() is queue.in_order()
    queue.serve(a)
    assert list(queue.in_order()) == [b, c]
    queue.remove(b)
    assert list(queue.in_order()) == [c]


def test_a_turn_that_was_not_used_is_given_back() -> None:
    queue: FairQueue[Ticket] = FairQueue()
    withdrawn, others = [Ticket("a", 0) for _ in range(6)], [Ticket("b", 0) for _ in range(3)]
    for ticket in (*withdrawn, *others):
        queue.push(ticket)
    for ticket in withdrawn:
        queue.remove(ticket)
    last = Ticket("a", 0)
    queue.push(last)

    assert served(queue) == [others[0], last, *others[1:]]


def test_who_had_turns_beforehand_waits_for_those_who_had_none() -> None:
    queue: FairQueue[Ticket] = FairQueue()
    first, second = Ticket("a", 0), Ticket("a", 0)
    other = [Ticket("b", 0) for _ in range(2)]
    for ticket in (first, second, *other):
        queue.push(ticket)
    queue.serve(first)
    queue.serve(second)
    third = Ticket("a", 0)
    queue.push(third)

    assert served(queue) == [*other, third]


# --- what goes wrong ---


async def test_an_error_in_a_shared_forward_ends_the_one_that_causes_it(bench: Bench, walker: Walker) -> None:
    walks = [Walk("a", 4), Walk("bad", 4, breaks_forward=True), Walk("c", 4)]
    first, *generations = await held(bench, walker, *walks, first=Walk("first", 8))
    results = await asyncio.gather(follow(first), *map(follow, generations), return_exceptions=True)

    assert isinstance(results[2], GenerationFailed)
    for walk, events in zip((Walk("first", 8), walks[0], walks[2]), (results[0], results[1], results[3]), strict=True):
        assert isinstance(events, list)
        assert made(events) == steps_of(walk)  # no step twice, none left out
    assert bench.endings() == {"complete": 3, "left": 0, "failed": 1, "late": 0}


async def test_an_error_in_ones_own_part_ends_that_one_alone(bench: Bench, walker: Walker) -> None:
    walks = [Walk("a", 4), Walk("bad", 4, breaks_at=2), Walk("c", 4)]
    generations = await held(bench, walker, *walks)
    results = await asyncio.gather(*map(follow, generations), return_exceptions=True)

    assert isinstance(results[2], GenerationFailed)
    assert "another request may well succeed" in results[2].message
    for walk, events in zip((walks[0], walks[2]), (results[1], results[3]), strict=True):
        assert isinstance(events, list)
        assert made(events) == steps_of(walk)


async def test_too_little_memory_halves_the_batch_and_all_go_on(bench: Bench, walker: Walker) -> None:
    walker.largest = 2
    walks = [Walk(str(number), 12) for number in range(4)]
    generations = await held(bench, walker, *walks)
    results = await asyncio.gather(*map(follow, generations))

    for walk, events in zip(walks, results[1:], strict=True):
        assert made(events) == steps_of(walk)
    sizes = [len(forward) for forward in walker.forwards]
    assert max(sizes) > 2
    assert sum(size > 2 for size in sizes) == 1  # it is tried once
    assert 2 in sizes


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError])
async def test_what_a_failed_forward_had_made_is_gone_before_it_is_run_again(
    bench: Bench, walker: Walker, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    right = walker.forward
    held_at_start: list[int] = []
    tensors: list[weakref.ref[Any]] = []

    def forward(states: Sequence[Walk]) -> list[str]:
        held_at_start.append(sum(tensor() is not None for tensor in tensors))
        activations = np.zeros(8)
        tensors.append(weakref.ref(activations))
        if len(states) > 1:
            raise error
        return right(states)

    monkeypatch.setattr(walker, "forward", forward)
    generations = await held(bench, walker, *(Walk(str(number), 4) for number in range(4)))
    results = await asyncio.gather(*map(follow, generations))

    assert all(isinstance(events[-1], Done) for events in results)
    assert len(held_at_start) > 1 + 4 * 4  # some failed
    assert set(held_at_start) == {0}


async def test_too_little_memory_for_one_alone_is_told_to_it(bench: Bench, walker: Walker) -> None:
    walker.largest = 0
    with pytest.raises(GenerationFailed, match="memory does not suffice"):
        await follow(submit(bench, Walk("large")))
    walker.largest = 100
    assert isinstance((await follow(submit(bench, Walk("next"))))[-1], Done)


@pytest.mark.parametrize("method", ["key", "cost"])
async def test_a_bug_in_a_stepper_fails_whom_it_concerns_and_nobody_else(
    bench: Bench, walker: Walker, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    right = getattr(walker, method)

    def fail(walk: Walk) -> Any:
        if walk.name == "culprit":
            raise ZeroDivisionError
        return right(walk)

    await follow(submit(bench, Walk("loads the model", 1)))
    walker.forwards.clear()
    monkeypatch.setattr(walker, method, fail)
    generations = await held(bench, walker, *(Walk(name) for name in ("a", "culprit", "b")))
    results = await asyncio.gather(*map(follow, generations), return_exceptions=True)

    assert [isinstance(result, GenerationFailed) for result in results] == [False, False, True, False]
    assert bench.queue_length == 0
    assert bench.endings() == {"complete": 4, "left": 0, "failed": 1, "late": 0}


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError])
async def test_a_preview_that_fails_is_done_without(
    bench: Bench, walker: Walker, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(state: Walk) -> Any:
        raise error

    monkeypatch.setattr(walker, "preview", fail)
    events = await follow(submit(bench, Walk("a", 6), num_previews=2))

    assert made(events) == steps_of(Walk("a", 6))
    assert not any(isinstance(event, Preview) for event in events)


async def test_a_request_whose_model_is_not_loaded_yet_waits_for_memory_like_others(make_bench: MakeBench) -> None:
    walker, other = Walker(), Walker()
    both: list[tuple[str, ...]] = []
    walker.forwards = other.forwards = both
    slots = {"model": Slot(lambda: walker, is_preloaded=False), "other": Slot(lambda: other, is_preloaded=False)}
    bench = make_bench(slots, memory_bytes=10)
    gate = walker.gates[1] = Gate()
    first = submit(bench, Walk("first", 5, cost=9))
    await reach(gate)
    second = bench.engine.submit(Walk("second", 2, cost=1000), "other", 0, Terms(LONG))
    gate.opened.set()
    await asyncio.gather(follow(first), follow(second))

    assert both == [("first",)] * 5 + [("second",)] * 2


# --- leaving ---


async def test_who_leaves_costs_one_iteration_at_most_and_nobody_else_notices(bench: Bench, walker: Walker) -> None:
    staying, leaving = Walk("staying", 9), Walk("leaving", 9)
    gate = walker.gates[6] = Gate()
    _, *generations = await held(bench, walker, staying, leaving)
    await reach(gate)
    generations[1].cancel()
    gate.opened.set()
    events, error = await asyncio.gather(*map(follow, generations), return_exceptions=True)

    assert isinstance(error, ModelLoading)
    assert isinstance(events, list)
    assert made(events) == steps_of(staying)
    assert (bench.count("iterations_after_leave_total") or 0) <= 1
    assert bench.endings() == {"complete": 2, "left": 1, "failed": 0, "late": 0}
    assert not any("leaving" in forward for forward in walker.forwards[6:])


async def test_a_deadline_ends_one_in_progress_between_two_iterations(bench: Bench, walker: Walker) -> None:
    gate = walker.gates[2] = Gate()
    other = submit(bench, Walk("other", 5))
    await reach(gate)
    late = submit(bench, Walk("late", 10**6), deadline=0.05)
    gate.opened.set()
    with pytest.raises(DeadlineExceeded):
        await follow(late)
    assert made(await follow(other)) == steps_of(Walk("other", 5))
    await follow(submit(bench, Walk("next")))
    assert bench.endings()["late"] == 1


async def test_an_idle_engine_holds_no_request(bench: Bench, walker: Walker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "atelier.engine")  # pytest keeps the log's records, and they the traceback
    walks = [Walk("a", 2), Walk("b", 3, ""), Walk("bad", 3, breaks_forward=True)]
    references = list(map(weakref.ref, walks))
    generations = await held(bench, walker, *walks)
    await asyncio.gather(*map(follow, generations), return_exceptions=True)
    await follow(submit(bench, Walk("last", 1)))
    del walks, generations
    gc.collect()

    assert [reference() for reference in references] == [None] * 3


# --- previews ---


@pytest.mark.parametrize(("num_previews", "steps"), [(0, 5), (1, 5), (3, 10), (3, 2), (2, 1)])
async def test_previews_are_spread_over_the_iterations(bench: Bench, num_previews: int, steps: int) -> None:
    events = await follow(submit(bench, Walk("a", steps), num_previews=num_previews))
    shown = [event.step for event in events if isinstance(event, Preview)]

    assert len(shown) == min(num_previews, steps - 1)
    assert all(0 < step < steps for step in shown)
    assert shown == sorted(set(shown))
    assert all((event.picture == event.step).all() for event in events if isinstance(event, Preview))


async def test_progress_that_nobody_asked_for_is_not_told(bench: Bench) -> None:
    events = await follow(submit(bench, Walk("a", 9), wants_progress=False))

    assert not any(isinstance(event, Progress) for event in events)
    assert made(events) == steps_of(Walk("a", 9))
    assert bench.count("iterations_total") == 9


async def test_the_time_left_goes_by_the_pace_since_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(generation_module, "time", SimpleNamespace(monotonic=lambda: now))
    metrics = EngineMetrics("test", CollectorRegistry()).of("model")
    pace = Pace()

    def begun() -> Generation:
        generation = Generation(None, "model", 0, Terms(1e9), metrics, pace, withdraw=lambda generation: None)
        generation.begin(now, is_timed=True)
        return generation

    first = begun()
    etas = []
    for step, seconds in [(1, 0.5), (2, 2.0), (3, 4.0), (4, 3.0), (5, 3.0)]:  # the first one is cheap: it encodes
        now += seconds
        first.advance(step, 5)
        etas.append(first.eta)
    assert etas == [None, 6.0, 6.0, 3.0, 0.0]

    second = begun()  # which knows from the first what to expect
    etas = []
    for step, seconds in [(0, 1.0), (0, 1.0), (1, 1.0), (1, 1.0), (2, 0.0), (2, 99.0), (3, 0.0)]:
        now += seconds
        second.advance(step, 3)
        etas.append(second.eta)
    assert etas == [8.0, 7.0, 6.0, 5.0, 1.0, 0.0, 0.0]


async def test_a_generation_that_is_over_or_taken_up_holds_its_request_no_longer(bench: Bench, walker: Walker) -> None:
    walker.max_active = 1
    gate = walker.gates[1] = Gate()
    running = submit(bench, Walk("running", 2))
    await reach(gate)
    leaving = submit(bench, Walk("leaving", 2))
    assert running.request is None
    assert leaving.request is not None
    leaving.cancel()
    assert leaving.request is None
    gate.opened.set()
    await follow(running)


async def test_a_follower_who_is_slow_misses_progress_but_no_output_and_not_the_end(bench: Bench) -> None:
    generation = submit(bench, Walk("a", 1000))
    await follow(submit(bench, Walk("b", 1000)))  # and nobody follows the first meanwhile
    events = await follow(generation)
    progress = [event for event in events if isinstance(event, Progress)]

    assert made(events) == steps_of(Walk("a", 1000))
    assert len(progress) <= 101
    assert (progress[-1].step, progress[-1].steps) == (1000, 1000)
    assert isinstance(events[-1], Done)


# --- loading ---


async def test_a_preloaded_model_that_may_do_better_later_is_tried_again(make_bench: MakeBench) -> None:
    outcomes = iter([ModelUnavailable("no network", retry_after=0.01), None])
    is_loaded = threading.Event()

    def make() -> Scripted:
        if (error := next(outcomes)) is not None:
            raise error
        is_loaded.set()
        return Scripted()

    bench = make_bench({"model": Slot(make, is_preloaded=True)})
    assert await asyncio.to_thread(is_loaded.wait, LONG)
    while True:
        try:
            generation = bench.submit()
            break
        except (ModelLoading, ModelUnavailable):
            await asyncio.sleep(0)

    assert isinstance((await follow(generation))[-1], Done)
    bench.engine.check_is_ready()


# --- how many ---


def measured(seconds: Callable[[int], float], most: int = 8, longest: float = 100) -> int:
    """The limit that a sizer comes to when forwards take `seconds` and there are always more requests."""
    sizer = BatchSizer(most)
    for _ in range(20):
        size = sizer.limit(longest)
        sizer.note(size, seconds(size))
    return sizer.limit(longest)


async def test_a_batch_grows_as_long_as_that_makes_it_cheaper_for_each() -> None:
    assert measured(lambda size: 1.0) == 8
    assert measured(lambda size: 2 + size) >= 4  # a batch of four costs half of four singles
    assert measured(lambda size: float(size)) == 1
    assert measured(lambda size: size**2) == 1
    assert measured(lambda size: 1.0, most=3) == 3
    assert measured(lambda size: 1 + 0.1 * size, longest=1.45) == 4


async def test_one_slow_forward_does_not_decide() -> None:
    sizer = BatchSizer(8)
    slow = iter([30.0])
    for _ in range(40):
        size = sizer.limit(100)
        sizer.note(size, next(slow, 1.0) if size == 2 else 1.0)
    assert sizer.limit(100) == 8


async def test_a_size_that_did_not_pay_is_tried_again() -> None:
    sizer = BatchSizer(8)
    for _ in range(20):
        size = sizer.limit(100)
        sizer.note(size, float(size))  # a busy machine, say
    assert sizer.limit(100) == 1
    for _ in range(600):
        size = sizer.limit(100)
        sizer.note(size, 1.0)
    assert sizer.limit(100) > 1


@pytest.mark.parametrize("longest", [100.0, 3.0])
async def test_a_busy_moment_does_not_end_the_sharing(longest: float) -> None:
    sizer = BatchSizer(8)
    for size in (1, 2, 4, 8):
        for _ in range(5):
            sizer.note(size, 1.0 if size == 1 else 5.0 * size)
    assert sizer.limit(longest) == 1
    for _ in range(1500):
        size = sizer.limit(longest)
        sizer.note(size, 1.0 + 0.01 * size)
    assert sizer.limit(longest) == 8


async def test_sizes_that_are_not_asked_for_any_more_are_still_known() -> None:
    sizer = BatchSizer(8)
    for _ in range(20):
        size = sizer.limit(100)
        sizer.note(size, 4.0 + size)
    for turn in range(2000):
        num_waiting = 7 + turn % 2
        assert sizer.limit(100) >= num_waiting
        sizer.note(num_waiting, (4.0 + num_waiting) * (1.1 if turn % 3 else 1.0))


async def test_memory_bounds_the_batch() -> None:
    sizer = BatchSizer(8)
    for _ in range(20):
        sizer.note(sizer.limit(100), 1.0)
    sizer.halve(8)
    assert sizer.limit(100) == 4
    sizer.halve(1)
    assert sizer.limit(100) == 1
