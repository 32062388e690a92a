"""One thread that owns the models of a worker and runs admitted requests; knows no modality and no HTTP.

Requests run one after the other. Issue by issue the loop may change (iteration batching), its face does not:
`submit` gives a `Generation`, whose events tell how it goes.
"""

import contextlib
import gc
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.engine.generation import Generation, Run, restarting
from services.engine.metrics import EngineMetrics
from services.errors import (
    Cancelled,
    GenerationFailed,
    ModelLoading,
    ModelUnavailable,
    QueueFull,
    ServiceError,
    UnknownModel,
)
from services.schema import MAX_SEED

logger = logging.getLogger("atelier.engine")


@dataclass(frozen=True)
class Result:
    """What a model says when it is through: units made, and why it ended."""

    usage: Mapping[str, int]
    finish_reason: str = "stop"


class Generator(Protocol):
    """What a modality knows: how to run a model that is in memory. Every call comes from the engine's thread."""

    def generate(self, request: Any, seed: int, run: Run) -> Result:
        """Make what `request` asks for, telling `run` after each iteration.

        Raises:
            ServiceError: the request cannot be served.
        """


@dataclass
class Slot:
    """A model's place in the engine.

    `make` loads the model. It is called on the engine's thread, and imports the model's library there: the event loop
    goes on answering. It raises `ModelUnavailable` when the operator has to act.
    """

    make: Callable[[], Generator]
    is_preloaded: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    generator: Generator | None = None
    failure: str | None = None  # a sentence for whoever asks for the model

    @property
    def is_loaded(self) -> bool:
        """Whether requests can run at once."""
        return self.generator is not None

    def check(self) -> None:
        """Raise when the model could not be loaded.

        Raises:
            ModelUnavailable: the operator has to act.
        """
        if self.failure is not None:
            raise ModelUnavailable(self.failure)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Import and load without looking for garbage that is not there: it takes a seventh of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def loading(name: str) -> ModelLoading:
    """What those are told who ask for a model that is on its way into memory."""
    return ModelLoading(f"model '{name}' is loading; try again in a few seconds", retry_after=5)


class Engine:
    """Runs the models of one modality on one thread."""

    def __init__(self, slots: Mapping[str, Slot], metrics: EngineMetrics, queue_size: int) -> None:
        """Wire the engine; nothing is loaded before `start`.

        Args:
            slots: the models by id; the first is the default.
            metrics: where work is counted.
            queue_size: how many requests may wait besides the one that runs.
        """
        self._slots = slots
        self._queue_length = metrics.queue_length
        self._metrics = {name: metrics.of(name) for name in slots}
        self._queue_size = queue_size
        self._queue: deque[Generation] = deque()
        self._current: Generation | None = None
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread; it loads the preloaded models first."""
        self._thread.start()

    def close(self, patience: float = 10) -> None:
        """Stop after the current iteration; everyone who still waits is told.

        Args:
            patience: seconds to wait for an iteration, or for a load, which nothing can interrupt.
        """
        with self._wake:
            self._is_closing = True
            self._wake.notify()
            unfinished = (*self._queue, *filter(None, (self._current,)))
        for generation in unfinished:
            generation.cancel()
        if self._thread.is_alive():
            self._thread.join(patience)
        if self._thread.is_alive():
            logger.warning("the engine is still busy after %.0f s; the process ends without waiting for it", patience)

    def check_is_ready(self) -> None:
        """Raise unless requests can run.

        Raises:
            ModelUnavailable: a preloaded model could not be loaded.
            ModelLoading: one is not in memory yet, or the worker is going down.
        """
        preloaded = {name: slot for name, slot in self._slots.items() if slot.is_preloaded}
        for slot in preloaded.values():
            slot.check()
        for name, slot in preloaded.items():
            if not slot.is_loaded:
                raise loading(name)
        if self._is_closing or not self._thread.is_alive():
            raise restarting()

    def defaults(self, model: str | None) -> Mapping[str, Any]:
        """What a request to `model` may leave out.

        Raises:
            UnknownModel: no such model here.
        """
        return self._find(model)[1].defaults

    def submit(self, request: Any, model: str | None, seed: int | None, deadline: float) -> Generation:
        """Admit a request; must be called from the event loop that will follow it.

        Args:
            request: handed to the model's `generate` as it is.
            model: an id, or None for the default.
            seed: None draws one.
            deadline: seconds from now.

        Raises:
            UnknownModel: no such model here.
            ModelLoading: a preloaded model is not in memory yet, or the worker is going down.
            ModelUnavailable: the model could not be loaded.
            QueueFull: too many wait already.
        """
        name, slot = self._find(model)
        slot.check()
        if slot.is_preloaded and not slot.is_loaded:
            raise loading(name)
        seed = seed if seed is not None else secrets.randbelow(MAX_SEED + 1)
        generation = Generation(request, name, seed, deadline, self._metrics[name], self._withdraw)
        with self._wake:
            if self._is_closing:
                raise restarting()
            if len(self._queue) >= self._queue_size:
                raise QueueFull(f"{len(self._queue)} requests wait already; try again later", retry_after=5)
            generation.queue(position=len(self._queue) + (self._current is not None))
            self._queue.append(generation)
            self._queue_length.set(len(self._queue))
            self._wake.notify()
        return generation

    def _find(self, model: str | None) -> tuple[str, Slot]:
        name = model if model is not None else next(iter(self._slots))
        slot = self._slots.get(name)
        if slot is None:
            served = ", ".join(self._slots)
            raise UnknownModel(f"model '{name}' is not served here; choose one of: {served}", param="model")
        return name, slot

    def _withdraw(self, generation: Generation) -> None:
        """Let a request that nobody wants any more leave the queue at once: it would keep others out, and memory."""
        with self._wake:
            if generation not in self._queue:
                return
            self._queue.remove(generation)
            self._queue_length.set(len(self._queue))
        self._serve(generation)  # which ends at its first check

    def _work(self) -> None:
        for name, slot in self._slots.items():
            if slot.is_preloaded and not self._is_closing:
                with contextlib.suppress(ServiceError):  # remembered in the slot, told to whoever asks
                    self._load(name, slot)
        while (generation := self._next()) is not None:
            self._serve(generation)
            del generation  # the next may be long in coming, and this one's request may be large

    def _next(self) -> Generation | None:
        with self._wake:
            self._current = None
            self._wake.wait_for(lambda: self._queue or self._is_closing)
            if self._is_closing:
                return None
            self._current = self._queue.popleft()
            self._queue_length.set(len(self._queue))
            return self._current

    def _load(self, name: str, slot: Slot) -> Generator:
        slot.check()
        started = time.monotonic()
        try:
            with no_garbage_collection():
                slot.generator = slot.make()
        except ModelUnavailable as error:
            logger.error("model %s cannot be loaded: %s", name, error, exc_info=error.__cause__)
            if slot.is_preloaded or error.retry_after is None:
                slot.failure = error.message
            raise
        except Exception as error:
            logger.exception("model %s failed to load", name)
            slot.failure = f"model '{name}' could not be loaded; the worker's log says why"
            raise ModelUnavailable(slot.failure) from error
        logger.info("model %s is loaded after %.1f s", name, time.monotonic() - started)
        return slot.generator

    def _serve(self, generation: Generation) -> None:
        slot = self._slots[generation.model]
        try:
            generation.check()
            generator = slot.generator or self._load(generation.model, slot)
            generation.check()  # loading takes its time
            generation.start()
            result = generator.generate(generation.request, generation.seed, generation)
        except Cancelled:
            generation.leave()
        except ServiceError as error:
            generation.fail(error)
        except Exception:
            logger.exception("model %s failed on a request", generation.model)
            generation.fail(GenerationFailed("the model failed on this request; another request may well succeed"))
        else:
            generation.finish(result.usage, result.finish_reason)
