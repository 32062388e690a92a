"""The models of a worker: which are in memory, on their way there, or failed, and why; knows no requests."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from services.engine.stepper import Stepper
from services.errors import ModelLoading, ModelUnavailable

ModelState = Literal["cold", "loading", "ready", "failed"]
RETRY_SECONDS = 5  # where nothing better is known

logger = logging.getLogger("atelier.engine")


def loading(name: str) -> ModelLoading:
    """What those are told who ask for a model that is on its way into memory."""
    return ModelLoading(f"model '{name}' is loading; try again in a few seconds", retry_after=RETRY_SECONDS)


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


@dataclass
class Slot:
    """A model's place in the engine.

    `make` loads the model. It is called on a thread of its own, and imports the model's library there: the event loop
    and the other models go on. It raises `ModelUnavailable`, with `retry_after` where trying again may help.
    `weigh` finds out how many bytes a loaded model's weights take.
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

    @property
    def is_loaded(self) -> bool:
        """Whether requests can run at once."""
        return self.stepper is not None

    @property
    def is_due(self) -> bool:
        """Whether it is to be loaded although nobody asks for it."""
        return self.is_preloaded and not self.is_loaded and (self.failure is None or time.monotonic() >= self.retry_at)

    @property
    def state(self) -> ModelState:
        """Where it is."""
        if self.stepper is not None:
            return "ready"
        if self.failure is not None:
            return "failed"
        return "loading" if self.is_loading or self.is_preloaded else "cold"

    def check(self) -> None:
        """Raise when the model could not be loaded.

        Raises:
            ModelUnavailable: the operator has to act.
        """
        if self.failure is not None:
            raise ModelUnavailable(self.failure)

    def load(self, name: str) -> Stepper[Any]:
        """Bring the model into memory; the caller puts it into the slot.

        Args:
            name: its id, for the log.

        Raises:
            ModelUnavailable: it cannot be; where that will remain so, it has been noted as the slot's failure.
        """
        started = time.monotonic()
        self.retry_at = math.inf
        try:
            with no_garbage_collection():
                stepper = self.make()
            self.num_bytes = self.weigh(stepper)
        except ModelUnavailable as error:
            logger.error("model %s cannot be loaded: %s", name, error, exc_info=error.__cause__)
            if self.is_preloaded or error.retry_after is None:
                self.failure = error.message
            if self.is_preloaded and error.retry_after is not None:
                self.retry_at = time.monotonic() + error.retry_after
            raise
        except Exception as error:
            logger.exception("model %s failed to load", name)
            self.failure = f"model '{name}' could not be loaded; the worker's log says why"
            raise ModelUnavailable(self.failure) from error
        self.failure = None
        taken = f", {self.num_bytes / 1e6:.0f} MB" if self.num_bytes else ""
        logger.info("model %s is loaded after %.1f s%s", name, time.monotonic() - started, taken)
        return stepper
