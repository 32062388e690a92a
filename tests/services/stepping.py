"""Runs steppers as the engine does, tick by tick, so that a test can say who joins when and look at every forward."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.engine.stepper import Result, Stepper
from services.errors import Cancelled


@dataclass(eq=False)
class Recorder:
    """Follows a request on the thread of its model, and leaves after iteration `stop_after`."""

    stop_after: int | None = None
    outputs: list[Any] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)
    result: Result | None = None
    error: Exception | None = None

    def emit(self, data: Any) -> None:
        self.outputs.append(data)

    def advance(self, step: int, steps: int) -> None:
        assert self.stop_after is None or len(self.progress) < self.stop_after, "the model went on"
        self.progress.append((step, steps))
        if len(self.progress) == self.stop_after:
            raise Cancelled


@dataclass(frozen=True)
class Arrival:
    """A request that joins at a tick."""

    request: Any
    seed: int = 0
    tick: int = 0
    stop_after: int | None = None


@dataclass(frozen=True)
class Forward:
    """One forward: its key, and which arrivals shared it."""

    key: Hashable | None
    members: tuple[int, ...]


def run(stepper: Stepper[Any], arrivals: Sequence[Arrival]) -> tuple[list[Recorder], list[Forward]]:
    """Run everyone to the end, all that share a key in one forward and the keys in turn."""
    recorders = [Recorder(arrival.stop_after) for arrival in arrivals]
    waiting = sorted(range(len(arrivals)), key=lambda number: arrivals[number].tick)
    states: dict[int, Any] = {}
    forwards: list[Forward] = []
    turns: dict[Hashable, int] = {}
    tick = 0
    while waiting or states:
        while waiting and arrivals[waiting[0]].tick <= tick:
            number = waiting.pop(0)
            try:
                states[number] = stepper.admit(arrivals[number].request, arrivals[number].seed, recorders[number])
            except Exception as error:
                recorders[number].error = error
        kinds: dict[Hashable, list[int]] = {}
        for number, state in states.items():
            key = stepper.key(state)
            kinds.setdefault(("alone", number) if key is None else key, []).append(number)
        if kinds:
            kind = min(kinds, key=lambda kind: turns.get(kind, -1))
            turns[kind] = tick
            members = kinds[kind]
            forwards.append(Forward(stepper.key(states[members[0]]), tuple(members)))
            step(stepper, states, members, recorders)
        tick += 1
    return recorders, forwards


def step(stepper: Stepper[Any], states: dict[int, Any], members: list[int], recorders: list[Recorder]) -> None:
    """One forward, and everyone's part of it; alone again where it fails for several."""
    try:
        rows = stepper.forward([states[number] for number in members])
    except Exception as error:
        if len(members) == 1:
            recorders[members[0]].error = error
            del states[members[0]]
            return
        for number in members:
            step(stepper, states, [number], recorders)
        return
    for number, row in zip(members, rows, strict=True):
        try:
            recorders[number].result = stepper.advance(states[number], row)
        except Exception as error:
            recorders[number].error = error
        if recorders[number].result is not None or recorders[number].error is not None:
            del states[number]


def alone(stepper: Stepper[Any], request: Any, seed: int = 0, stop_after: int | None = None) -> Recorder:
    """Run one request and raise what it ends with.

    Raises:
        Exception: what the stepper raised.
    """
    (recorder,), _ = run(stepper, [Arrival(request, seed, stop_after=stop_after)])
    if recorder.error is not None:
        raise recorder.error
    return recorder
