"""Runs steppers as the engine does, tick by tick, so that a test can say who joins when and look at every forward."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.engine.stepper import Result, Stepper
from services.errors import Cancelled


@dataclass(eq=False)
class Recorder:
    """Follows a request on the thread of its model, and leaves after iteration `stop_after`."""

    stop_after: int | None = None
    raises: type[Exception] = Cancelled
    outputs: list[Any] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    progress: list[tuple[int, int]] = field(default_factory=list)
    state: Any = None  # the stepper's
    result: Result | None = None
    error: Exception | None = None

    @property
    def is_over(self) -> bool:
        return self.result is not None or self.error is not None

    def sketch(self, make: Callable[[], Any]) -> None:
        pass  # nobody wants any

    def emit(self, data: Any) -> None:
        self.outputs.append(data)

    def count(self, **units: float) -> None:
        self.made.update(units)

    def advance(self, step: int, steps: int) -> None:
        assert self.stop_after is None or len(self.progress) < self.stop_after, "the model went on"
        self.progress.append((step, steps))
        if len(self.progress) == self.stop_after:
            raise self.raises


@dataclass(frozen=True)
class Arrival:
    """A request that joins at a tick."""

    request: Any
    seed: int = 0
    tick: int = 0
    stop_after: int | None = None
    raises: type[Exception] = Cancelled  # what it stops with


@dataclass(frozen=True)
class Forward:
    """One forward: its key, which arrivals shared it, and their phase where the stepper's states have one."""

    key: Hashable | None
    members: tuple[int, ...]
    phase: Any


def run(
    stepper: Stepper[Any], arrivals: Sequence[Arrival], most: int = 8, repeated: frozenset[int] = frozenset()
) -> tuple[list[Recorder], list[Forward]]:
    """Run everyone to the end: those that share a key in one forward, and the keys in turn.

    Args:
        stepper: the model.
        arrivals: who comes, and when.
        most: how many may share a forward.
        repeated: forwards that are run a second time, each row alone, as after a failure.
    """
    recorders = [Recorder(arrival.stop_after, arrival.raises) for arrival in arrivals]
    waiting = sorted(range(len(arrivals)), key=lambda number: arrivals[number].tick)
    active: list[int] = []
    forwards: list[Forward] = []
    turns: dict[Hashable, int] = {}
    tick = 0
    while waiting or active:
        while waiting and arrivals[waiting[0]].tick <= tick:
            number = waiting.pop(0)
            recorder = recorders[number]
            try:
                recorder.state = stepper.admit(arrivals[number].request, arrivals[number].seed, recorder)
            except Exception as error:
                recorder.error = error
            else:
                active.append(number)
        tick += 1
        kinds: dict[Hashable, list[int]] = {}
        for number in active:
            key = stepper.key(recorders[number].state)
            kinds.setdefault(("alone", number) if key is None else key, []).append(number)
        if not kinds:
            continue
        kind = min(kinds, key=lambda kind: turns.get(kind, 0))
        turns = {other: turns.get(other, 0) for other in kinds} | {kind: tick}
        members = kinds[kind][:most]
        state = recorders[members[0]].state
        forwards.append(Forward(stepper.key(state), tuple(members), getattr(state, "phase", None)))
        step(stepper, [recorders[number] for number in members], is_repeated=len(forwards) in repeated)
        active = [number for number in active if not recorders[number].is_over]
    return recorders, forwards


def step(stepper: Stepper[Any], recorders: list[Recorder], *, is_repeated: bool) -> None:
    """One forward, and everyone's part of it; alone again where it fails for several."""
    try:
        rows = stepper.forward([recorder.state for recorder in recorders])
        if is_repeated:
            rows = [stepper.forward([recorder.state])[0] for recorder in recorders]
    except Exception as error:
        if len(recorders) == 1:
            recorders[0].error = error
            return
        for recorder in recorders:
            step(stepper, [recorder], is_repeated=False)
        return
    for recorder, row in zip(recorders, rows, strict=True):
        try:
            recorder.result = stepper.advance(recorder.state, row)
        except Exception as error:
            recorder.error = error


def alone(stepper: Stepper[Any], request: Any, seed: int = 0, stop_after: int | None = None) -> Recorder:
    """Run one request and raise what it ends with.

    Raises:
        Exception: what the stepper raised.
    """
    (recorder,), _ = run(stepper, [Arrival(request, seed, stop_after=stop_after)])
    if recorder.error is not None:
        raise recorder.error
    return recorder
