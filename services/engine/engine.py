"""One thread that owns the models of a worker and runs requests by the iteration; knows no modality and no HTTP.

Requests join and leave between two forwards. Those whose next forward is of the same kind share it.
"""

import asyncio
import contextlib
import gc
import logging
import math
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from services.engine import memory
from services.engine.batching import BatchSizer
from services.engine.generation import Generation, Pace, Terms, restarting
from services.engine.mail import together
from services.engine.metrics import EngineMetrics
from services.engine.queue import FairQueue
from services.engine.stepper import Stepper
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

ModelState = Literal["loaded", "loading", "not_loaded", "failed"]
MAX_KINDS = 256  # of forwards whose seconds are remembered
RETRY_SECONDS = 5  # where nothing better is known

logger = logging.getLogger("atelier.engine")


@dataclass
class Slot:
    """A model's place in the engine.

    `make` loads the model. It is called on the engine's thread, and imports the model's library there: the event loop
    goes on answering. It raises `ModelUnavailable`, with `retry_after` where trying again may help.
    """

    make: Callable[[], Stepper[Any]]
    is_preloaded: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stepper: Stepper[Any] | None = None
    failure: str | None = None  # a sentence for whoever asks for the model
    retry_at: float = math.inf  # when loading is tried again

    @property
    def is_loaded(self) -> bool:
        """Whether requests can run at once."""
        return self.stepper is not None

    def check(self) -> None:
        """Raise when the model could not be loaded.

        Raises:
            ModelUnavailable: the operator has to act.
        """
        if self.failure is not None:
            raise ModelUnavailable(self.failure)


@dataclass(eq=False)
class Active:
    """A request in progress."""

    generation: Generation
    stepper: Stepper[Any]
    state: Any
    cost: int  # bytes, estimated
    last_turn: int = 0  # the number of the forward

    @property
    def kind(self) -> Hashable:
        """What its next forward is; those of a kind share one."""
        key = self.stepper.key(self.state)
        return (self.generation.model, key) if key is not None else self


@dataclass(frozen=True)
class Limits:
    """What the engine allows itself.

    Args:
        queue_size: requests that may wait besides those in progress.
        step_seconds: what a forward that several share may take; who joins, leaves or shares the device waits for it.
        memory_bytes: what requests in progress may take together; asked when a model has been loaded.
    """

    queue_size: int
    step_seconds: float
    memory_bytes: Callable[[], float]


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
    return ModelLoading(f"model '{name}' is loading; try again in a few seconds", retry_after=RETRY_SECONDS)


class Engine:
    """Runs the models of one modality on one thread."""

    def __init__(self, slots: Mapping[str, Slot], metrics: EngineMetrics, limits: Limits) -> None:
        """Wire the engine; nothing is loaded before `start`.

        Args:
            slots: the models by id; the first is the default.
            metrics: where work is counted.
            limits: how many requests may wait, and what those in progress may take.
        """
        self._slots = slots
        self._metrics = {name: metrics.of(name) for name in slots}
        self._paces = {name: Pace() for name in slots}
        self._limits = limits
        self._queue: FairQueue[Generation] = FairQueue()
        self._admitting: Generation | None = None
        self._loading: Generation | None = None  # still in the queue, but its turn has come
        self._has_room = False  # since the waiting were told of their places
        self._active: list[Active] = []  # in the order they came, the higher priority first
        self._last_forwards: dict[Hashable, int] = {}  # by kind: when it had its turn
        self._last_turns: dict[str, int] = {}  # by caller: when one of its requests had its turn
        self._num_forwards = 0
        self._sizers: dict[Hashable, BatchSizer] = {}
        self._memory_bytes = 0.0
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._num_estimating = 0  # requests that are not in the queue yet
        self._estimates = ThreadPoolExecutor(1, "estimates")  # one thread: it shares the processor with the engine's

    def start(self) -> None:
        """Start the thread; it loads the preloaded models first."""
        self._thread.start()

    def close(self, patience: float = 10) -> None:
        """Stop after the current iteration; everyone who still waits is told.

        Args:
            patience: seconds to wait for an iteration, or for a load, which nothing can interrupt.
        """
        self._estimates.shutdown(wait=False, cancel_futures=True)
        with self._wake:
            self._is_closing = True
            self._wake.notify()
            in_progress = [active.generation for active in self._active]
            unfinished = (*self._queue.in_order(), *filter(None, (self._admitting,)), *in_progress)
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

    def state(self, model: str) -> ModelState:
        """Whether a model is in memory, on its way there, or why not; of any thread.

        Raises:
            UnknownModel: no such model here.
        """
        slot = self._find(model)[1]
        if slot.stepper is not None:
            return "loaded"
        if slot.failure is not None:
            return "failed"
        return "loading" if slot.is_preloaded else "not_loaded"

    def stepper(self, model: str | None) -> Any:
        """A model that is in memory, for what it knows without its thread.

        Raises:
            UnknownModel: no such model here.
            ModelUnavailable: it could not be loaded.
            ModelLoading: it is not in memory.
        """
        name, slot = self._find(model)
        slot.check()
        if slot.stepper is None:
            raise loading(name)
        return slot.stepper

    async def estimate(self, request: Any, model: str | None) -> int | None:
        """Find out what a request will take, beside the engine's thread: others' next steps do not wait for it.

        Returns:
            Bytes; None while the model is not in memory.

        Raises:
            UnknownModel: no such model here.
            ServiceError: the request cannot be served, as is plain already.
        """
        stepper = self._find(model)[1].stepper
        if self._is_closing:
            raise restarting()
        if stepper is None:
            return None
        self._num_estimating += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._estimates, stepper.cost, request)
        finally:
            self._num_estimating -= 1

    def submit(
        self, request: Any, model: str | None, seed: int | None, terms: Terms, cost: int | None = None
    ) -> Generation:
        """Admit a request; must be called from the event loop that will follow it.

        Args:
            request: handed to the model's stepper as it is.
            model: an id, or None for the default.
            seed: None draws one.
            terms: how long its caller waits, and before whom.
            cost: what `estimate` found; None: the engine's thread finds out.

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
        generation = Generation(request, name, seed, terms, self._metrics[name], self._paces[name], self._withdraw)
        generation.cost = cost
        with self._wake:
            self._check_for_place()
            self._queue.push(generation)
            self._note_queue()
            self._wake.notify()
        return generation

    def check_for_place(self, number: int = 1) -> None:
        """Raise when a request would be refused whatever it asks for: to be called before work is put into it.

        Args:
            number: of places in the queue that it takes.

        Raises:
            ModelLoading: the worker is going down.
            QueueFull: too many wait already.
        """
        with self._wake:
            self._check_for_place(number)

    def _check_for_place(self, number: int = 1) -> None:
        if self._is_closing:
            raise restarting()
        if self._num_waiting() + number > self._limits.queue_size:
            message = f"{self._num_waiting()} requests wait already; try again later"
            raise QueueFull(message, retry_after=self._seconds_to_a_place())

    def _num_waiting(self) -> int:
        return self._num_estimating + len(self._queue) - (self._loading in self._queue)

    def _find(self, model: str | None) -> tuple[str, Slot]:
        name = model if model is not None else next(iter(self._slots))
        slot = self._slots.get(name)
        if slot is None:
            served = ", ".join(self._slots)
            raise UnknownModel(f"model '{name}' is not served here; choose one of: {served}", param="model")
        return name, slot

    def _seconds_to_a_place(self) -> float:
        """When the first of those in progress will be through, at the pace it has had."""
        left = [active.generation.eta for active in self._active if active.generation.eta is not None]
        return float(math.ceil(min(left, default=RETRY_SECONDS))) or 1.0

    def _withdraw(self, generation: Generation) -> None:
        """Let a request that nobody wants any more leave the queue at once: it would keep others out, and memory."""
        if self._leave_queue(generation):
            self._end_if_stopped(generation)

    def _leave_queue(self, generation: Generation) -> bool:
        """Take one who waits out of the queue; whether it was there."""
        with self._wake:
            if generation not in self._queue:
                return False
            self._queue.remove(generation)
            self._note_queue()
        return True

    def _note_queue(self) -> None:
        """Count those who wait, and tell them how many are ahead."""
        waiting = Counter(generation.model for generation in self._queue.in_order() if generation is not self._loading)
        for name, metrics in self._metrics.items():
            metrics.queue_length.set(waiting[name])
        self._has_room = False
        num_beyond = len(self._active) + (self._admitting is not None)
        for position, generation in enumerate(self._queue.in_order(), start=num_beyond):
            generation.queue(position)

    def _work(self) -> None:
        self._preload()
        while self._wait():
            try:
                self._preload()
                self._drop_stopped()
                self._admit()
                self._advance_some()
            except Exception:
                logger.exception("the engine failed; nobody who waits is kept waiting")
                self._fail_all()

    def _fail_all(self) -> None:
        """Tell everyone that it has failed: who is to blame is not known."""
        with self._wake:
            everyone = [*(active.generation for active in self._active), *self._queue.in_order()]
            self._active.clear()
            for generation in self._queue.in_order():
                self._queue.remove(generation)
            self._note_queue()
        for generation in everyone:
            generation.fail(GenerationFailed("the engine failed; its log says why"))

    def _wait(self) -> bool:
        """Wait for something to do; false when it is time to end."""
        with self._wake:
            if not self._active:
                self._last_forwards.clear()  # whose keys may be requests
                self._last_turns.clear()
                retry_at = min((slot.retry_at for slot in self._slots.values()), default=math.inf)
                patience = None if retry_at == math.inf else max(0.0, retry_at - time.monotonic())
                self._wake.wait_for(lambda: self._queue or self._is_closing, patience)
            if not self._is_closing:
                return True
        self._drop_stopped()  # that is all of them
        return False

    def _preload(self) -> None:
        for name, slot in self._slots.items():
            is_due = slot.failure is None or time.monotonic() >= slot.retry_at
            if slot.is_preloaded and not slot.is_loaded and is_due and not self._is_closing:
                with contextlib.suppress(ServiceError):  # remembered in the slot, told to whoever asks
                    self._load(name, slot)

    def _loaded(self, name: str) -> Stepper[Any]:
        slot = self._slots[name]
        if slot.stepper is not None:
            return slot.stepper
        slot.check()
        return self._load(name, slot)

    def _load(self, name: str, slot: Slot) -> Stepper[Any]:
        started = time.monotonic()
        slot.retry_at = math.inf
        try:
            with no_garbage_collection():
                stepper = slot.make()
        except ModelUnavailable as error:
            logger.error("model %s cannot be loaded: %s", name, error, exc_info=error.__cause__)
            if slot.is_preloaded or error.retry_after is None:
                slot.failure = error.message
            if slot.is_preloaded and error.retry_after is not None:
                slot.retry_at = time.monotonic() + error.retry_after
            raise
        except Exception as error:
            logger.exception("model %s failed to load", name)
            slot.failure = f"model '{name}' could not be loaded; the worker's log says why"
            raise ModelUnavailable(slot.failure) from error
        slot.stepper, slot.failure = stepper, None
        self._memory_bytes = self._limits.memory_bytes()
        logger.info("model %s is loaded after %.1f s", name, time.monotonic() - started)
        return stepper

    def _drop_stopped(self) -> None:
        """Let those go whom nobody waits for any more."""
        now = time.monotonic()
        for active in [active for active in self._active if active.generation.is_unwanted(now)]:
            self._drop(active)
            self._end_if_stopped(active.generation)

    def _admit(self) -> None:
        """Take up those who wait, as long as there is room."""
        while True:
            self._estimate()
            with self._wake:
                if self._is_closing:
                    return
                generation = self._next()
                if generation is None:
                    if self._has_room:
                        self._note_queue()
                    return
                is_loaded = self._slots[generation.model].is_loaded
                if is_loaded:
                    self._admitting = generation
                    self._queue.serve(generation)
                else:
                    self._loading = generation
                self._note_queue()
            if not is_loaded:
                self._load_for(generation)
                continue
            try:
                active = self._taken_up(generation)
            except Exception as error:
                end(generation, error)
            else:
                with self._wake:
                    self._active.append(active)
                    self._active.sort(key=lambda other: -other.generation.priority)  # stable
                del active
            self._admitting = None
            del generation  # the next may be long in coming, and this one's request may be large

    def _estimate(self) -> None:
        """Find out what those will cost who came before their model did, without keeping others from joining them."""
        with self._wake:
            waiting = self._queue.in_order()
        for generation in waiting:
            stepper, request = self._slots[generation.model].stepper, generation.request
            if stepper is None or request is None or generation.cost is not None:
                continue
            try:
                generation.cost = stepper.cost(request)
            except Exception as error:
                self._refuse(generation, error)

    def _refuse(self, generation: Generation, error: Exception) -> None:
        """End one who waits, unless it has left meanwhile."""
        if self._leave_queue(generation):
            end(generation, error)

    def _load_for(self, generation: Generation) -> None:
        """Load the model that a request needs; whether it has room beside the others is known only then."""
        try:
            generation.check()
            self._loaded(generation.model)
        except Exception as error:
            self._refuse(generation, error)
        finally:
            self._loading = None

    def _taken_up(self, generation: Generation) -> Active:
        generation.check()
        stepper = self._loaded(generation.model)
        cost = generation.cost if generation.cost is not None else stepper.cost(generation.request)
        state = stepper.admit(generation.request, generation.seed, generation)
        generation.request = None  # which may be large; the state has what it needs
        return Active(generation, stepper, state, cost)

    def _next(self) -> Generation | None:
        """Return who can be in progress beside the others; whoever waits for memory is not overtaken."""
        num_active = Counter(active.generation.model for active in self._active)
        for generation in self._queue.in_order():
            stepper = self._slots[generation.model].stepper
            if stepper is None or not self._active:
                return generation
            if generation.cost is None:  # it came just now
                return None
            if num_active[generation.model] < stepper.max_active:
                in_use = sum(active.cost for active in self._active)
                return generation if in_use + generation.cost <= self._memory_bytes else None
        return None

    def _advance_some(self) -> None:
        chosen = self._choose()
        if chosen is not None:
            self._step(*chosen)

    def _choose(self) -> tuple[Hashable, list[Active]] | None:
        """Choose the kind that has waited longest for its turn, and as many who need it as are worth while."""
        kinds: dict[Hashable, list[Active]] = defaultdict(list)
        for active in tuple(self._active):
            try:
                kinds[active.kind].append(active)
            except Exception as error:
                self._end(active, error)
        if not kinds:
            return None
        kind = min(kinds, key=lambda kind: self._last_forwards.get(kind, 0))
        self._num_forwards += 1
        self._last_forwards = {other: self._last_forwards.get(other, 0) for other in kinds}
        self._last_forwards[kind] = self._num_forwards
        sizer = self._sizer(kind, kinds[kind][0])
        always_shares = kinds[kind][0].stepper.always_shares
        limit = sizer.most if always_shares else sizer.limit(self._limits.step_seconds)
        return kind, self._in_turn(kinds[kind])[:limit] if limit < len(kinds[kind]) else kinds[kind]

    def _in_turn(self, actives: Sequence[Active]) -> list[Active]:
        """Order who cannot all share a forward: by priority, then the callers in turn.

        Of a caller's own, the first that was sent is first; where everybody is to go on, who has waited longest is.
        """
        if actives[0].stepper.always_shares:
            actives = sorted(actives, key=lambda active: active.last_turn)  # stable
        counts: Counter[tuple[int, str]] = Counter()
        ranks = []
        for active in actives:
            priority, caller = active.generation.priority, active.generation.caller
            ranks.append((-priority, counts[priority, caller], self._last_turns.get(caller, 0)))
            counts[priority, caller] += 1
        return [actives[place] for place in sorted(range(len(actives)), key=ranks.__getitem__)]

    def _sizer(self, kind: Hashable, active: Active) -> BatchSizer:
        if kind is active:  # it runs alone
            return BatchSizer(most=1)
        if kind not in self._sizers:
            if len(self._sizers) == MAX_KINDS:
                del self._sizers[next(iter(self._sizers))]
            self._sizers[kind] = BatchSizer(active.stepper.max_active)
        return self._sizers[kind]

    def _step(self, kind: Hashable, batch: Sequence[Active]) -> None:
        """Run one forward for `batch`, and hand everyone their part."""
        stepper = batch[0].stepper
        started = time.monotonic()
        for active in batch:
            self._last_turns[active.generation.caller] = active.last_turn = self._num_forwards
            active.generation.begin(started, is_timed=active is batch[0])
        self._metrics[batch[0].generation.model].batch_size.observe(len(batch))
        rows: Sequence[Any] | None = None
        is_short = False
        try:
            rows = stepper.forward([active.state for active in batch])
        except Exception as error:
            if len(batch) == 1:
                self._end(batch[0], error)
                return
            is_short = memory.is_out_of_memory(error)
        if rows is None:  # not within the handler: until that ends, the error's frames hold the model's tensors
            self._step_in_parts(kind, batch, is_short=is_short)
            return
        with together(active.generation.mail for active in batch):
            for active, row in zip(batch, rows, strict=True):
                try:
                    self._advance(active, row)
                except Exception as error:
                    self._end(active, error)
        self._sizer(kind, batch[0]).note(len(batch), time.monotonic() - started)

    def _step_in_parts(self, kind: Hashable, batch: Sequence[Active], *, is_short: bool) -> None:
        """Run the forward again: for want of memory with half of them, else with each alone to find the culprit."""
        size = 1
        if is_short:
            memory.give_back()
            self._sizer(kind, batch[0]).halve(len(batch))
            size = len(batch) // 2
            logger.warning("memory does not suffice for a batch of %d; from now on it is %d", len(batch), size)
        for start in range(0, len(batch), size):
            self._step(kind, batch[start : start + size])

    def _advance(self, active: Active, row: Any) -> None:
        generation = active.generation
        result = active.stepper.advance(active.state, row)
        if result is not None:
            generation.finish(result.finish_reason)
            self._drop(active)
        else:
            generation.sketch(partial(active.stepper.preview, active.state))

    def _end_if_stopped(self, generation: Generation) -> bool:
        """End what nobody waits for any more; whether that is so."""
        try:
            generation.check()
        except (Cancelled, ServiceError) as error:
            end(generation, error)
            return True
        return False

    def _end(self, active: Active, error: Exception) -> None:
        """Let `active` go, as something ended it; nobody else notices."""
        self._drop(active)
        end(active.generation, error)

    def _drop(self, active: Active) -> None:
        with self._wake:
            self._active.remove(active)
            self._has_room = True


def end(generation: Generation, error: Exception) -> None:
    """Tell whoever follows `generation` what ended it."""
    if isinstance(error, Cancelled):
        generation.leave()
    elif isinstance(error, ServiceError):
        generation.fail(error)
    elif memory.is_out_of_memory(error):
        generation.context.run(logger.error, "model %s: %s", generation.model, error)
        generation.fail(GenerationFailed("memory does not suffice for this request; ask for something smaller"))
        memory.give_back()
    else:
        generation.context.run(logger.error, "model %s failed on a request", generation.model, exc_info=error)
        generation.fail(GenerationFailed("the model failed on this request; another request may well succeed"))
