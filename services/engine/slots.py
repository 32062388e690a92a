"""The models of a worker: which are in memory, who leaves for another, what failed and why; knows no thread."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from services.engine.progress import Progress, listener
from services.engine.stepper import Stepper
from services.errors import ModelLoading, ModelUnavailable

ModelState = Literal["cold", "loading", "ready", "failed"]
RETRY_SECONDS = 5  # where nothing better is known
MAX_LATE = 8  # requests: a batch

logger = logging.getLogger("atelier.engine")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Import and load without looking for garbage that is not there: it takes a seventh of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def unknown(stepper: Stepper[Any]) -> int:
    """Measure nothing."""
    return 0


def loading(name: str, slot: "Slot") -> ModelLoading:
    """What those are told who ask for a model that is on its way into memory."""
    how_far = f" ({slot.progress})" if slot.progress is not None else ""
    return ModelLoading(f"model '{name}' is loading{how_far}; try again in a few seconds", retry_after=RETRY_SECONDS)


@dataclass
class Slot:
    """A model's place in the engine.

    `make` loads the model. It is called on a thread of its own, and imports the model's library there: the event loop
    and the other models go on. It raises `ModelUnavailable`, with `retry_after` where trying again may help.
    `weigh` finds out how many bytes a loaded model's weights take.

    Args:
        barred: why it is not to be loaded at all, in a sentence.
        is_pinned: it leaves for no other.
        is_swapped: no other such one is in memory beside it.
        expected_bytes: what its weights may take, as long as that has not been measured.
        drained: of a model that leaves, the requests that are still served: those that waited when that was decided,
            and a few more: else they would wait for all the others' turns.
        num_late: how many more that may be.
        is_wanted: whether an operator, or somebody who did not wait, has asked for it.
        setback: why the last load failed, where the next may well succeed.
        progress: how far it is on its way into memory.
    """

    make: Callable[[], Stepper[Any]]
    is_preloaded: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stepper: Stepper[Any] | None = None
    failure: str | None = None  # a sentence for whoever asks for the model
    retry_at: float = math.inf  # when loading is tried again
    is_loading: bool = False
    weigh: Callable[[Stepper[Any]], int] = unknown
    num_bytes: int | None = None  # of its weights; None: it has not been in memory yet
    barred: str | None = None
    is_pinned: bool = False
    is_swapped: bool = False
    expected_bytes: int = 0
    last_used: float = 0.0
    loaded_at: float = 0.0
    drained: set[object] | None = None
    num_late: int = 0
    is_wanted: bool = False
    setback: str | None = None
    progress: Progress | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether requests can run at once."""
        return self.stepper is not None

    @property
    def is_due(self) -> bool:
        """Whether it is to be loaded although nobody waits for it."""
        if self.is_loaded or self.barred is not None:
            return False
        is_retried = self.failure is None or time.monotonic() >= self.retry_at
        return self.is_wanted or ((self.is_preloaded and self.num_bytes is None) and is_retried)

    @property
    def is_awaited(self) -> bool:
        """Whether it belongs to what a worker has when it is ready, and is not there yet."""
        return self.is_preloaded and self.num_bytes is None and not self.is_loaded

    @property
    def size(self) -> int:
        """Bytes of its weights, as far as is known."""
        return self.num_bytes if self.num_bytes is not None else self.expected_bytes

    @property
    def state(self) -> ModelState:
        """Where it is."""
        if self.stepper is not None:
            return "ready"
        if self.reason is not None:
            return "failed"
        return "loading" if self.is_loading or self.is_awaited else "cold"

    @property
    def reason(self) -> str | None:
        """Why it cannot be asked for, in a sentence."""
        return self.barred or self.failure

    def drain(self, waiting: Iterable[object]) -> None:
        """Leave once `waiting` have been served."""
        self.drained, self.num_late = set(waiting), MAX_LATE

    def let_in(self, request: object) -> None:
        """Serve a request that comes while it leaves, unless there have been enough of those."""
        if self.drained is not None and self.num_late:
            self.drained.add(request)
            self.num_late -= 1

    def rank(self, *, is_busy: bool) -> tuple[bool, float]:
        """Whose turn it is to leave: the lower, the sooner."""
        return is_busy, self.loaded_at if is_busy else self.last_used

    def check(self) -> None:
        """Raise when the model could not be loaded.

        Raises:
            ModelUnavailable: the operator has to act.
        """
        if self.reason is not None:
            raise ModelUnavailable(self.reason)

    def load(self, name: str) -> Stepper[Any]:
        """Bring the model into memory; the caller puts it into the slot.

        Args:
            name: its id, for the log.

        Raises:
            ModelUnavailable: it cannot be; where that will remain so, it has been noted as the slot's failure.
        """
        started = time.monotonic()
        self.retry_at, self.is_wanted = math.inf, False
        listener.set(self._note)
        try:
            with no_garbage_collection():
                stepper = self.make()
            self.num_bytes = self.weigh(stepper)
        except ModelUnavailable as error:
            logger.error("model %s is not loaded: %s", name, error)
            self.setback = error.message
            if self.is_preloaded or error.retry_after is None:
                self.failure = error.message
            if self.is_preloaded and error.retry_after is not None:
                self.retry_at = time.monotonic() + error.retry_after
            raise
        except Exception as error:
            logger.exception("model %s failed to load", name)
            self.failure = f"model '{name}' could not be loaded; the worker's log says why"
            raise ModelUnavailable(self.failure) from error
        finally:
            self.progress = None
        self.failure = self.setback = None
        self.loaded_at = self.last_used = time.monotonic()
        taken = f", {self.num_bytes / 1e6:.0f} MB" if self.num_bytes else ""
        logger.info("model %s is loaded after %.1f s%s", name, time.monotonic() - started, taken)
        return stepper

    def _note(self, progress: Progress) -> None:
        self.progress = progress


@dataclass(frozen=True)
class Room:
    """How many models may be in memory at once, bytes of their weights, and seconds until one that is idle leaves."""

    num_models: float = math.inf
    num_bytes: float = math.inf
    idle_seconds: float = math.inf

    def leaving(self, slots: Mapping[str, Slot], name: str, busy: Set[str]) -> list[str] | None:
        """Return which models have to leave so that there is room for `name`; None: those that may are not enough.

        Where it is one of those that share a place, whoever has that leaves in any case. Else those that nobody uses go
        first, least recently used; then who has been there longest, so that all take turns.
        """
        others = {other: slot for other, slot in slots.items() if slot.is_loaded and other != name}
        gone = [other for other, slot in others.items() if slot.is_swapped and slots[name].is_swapped]
        staying = sum(slot.size for other, slot in others.items() if other not in gone)
        left_over = self.num_bytes - slots[name].size - staying
        num_over = len(others) + 1 - self.num_models
        movable = [other for other, slot in others.items() if not slot.is_pinned and other not in gone]
        for other in sorted(movable, key=lambda other: others[other].rank(is_busy=other in busy)):
            if num_over <= len(gone) and left_over >= 0:
                break
            left_over += others[other].size
            gone.append(other)
        return gone if num_over <= len(gone) and left_over >= 0 else None

    def refusal(self, name: str, slot: Slot) -> str:
        """Say why there is never room for a model."""
        return (
            f"model '{name}' has no room: it takes {slot.size / 1e6:.0f} MB, and the operator allows "
            f"{self.num_models} models and {self.num_bytes / 1e6:.0f} MB, less what is pinned"
        )
