"""One thread that owns the models of a worker and runs requests by the iteration; knows no modality and no HTTP.

Requests join and leave between two forwards. Those whose next forward is of the same kind share it. Models are loaded
beside that thread, one after the other; until one is there, those who ask for it wait, and hold up nobody else.
"""

import logging
import math
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from services.engine import default_type, memory
from services.engine.batching import BatchSizer
from services.engine.estimates import Estimates
from services.engine.generation import Generation, Pace, Terms, restarting
from services.engine.mail import together
from services.engine.metrics import EngineMetrics
from services.engine.progress import Progress
from services.engine.queue import FairQueue
from services.engine.slots import RETRY_SECONDS, ModelState, Room, Slot, loading
from services.engine.stepper import LEFT_OUT, Stepper
from services.errors import (
    Cancelled,
    GenerationFailed,
    ModelUnavailable,
    QueueFull,
    ServiceError,
    UnknownModel,
)
from services.schema import MAX_SEED

MAX_KINDS = 256  # of forwards whose seconds are remembered

logger = logging.getLogger("atelier.engine")


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
        room: for models.
        waits_for_models: whether who asks for a model that is not in memory waits for it, or is told to come back.
    """

    queue_size: int
    step_seconds: float
    memory_bytes: Callable[[], float]
    room: Room = field(default_factory=Room)
    waits_for_models: bool = True


@dataclass(frozen=True)
class Look:
    """What there is to see of a model from outside.

    Args:
        failure: why it is not in memory, in a sentence; of one that is cold, why it was not loaded when last asked for.
        num_bytes: of its weights; None: it has not been in memory yet.
        progress: how far one that is loading is; None: it waits for its turn.
        num_waiting: requests in the queue.
        num_active: requests in progress.
        batch_size: how many of those shared the latest forward.
    """

    state: ModelState
    failure: str | None
    num_bytes: int | None
    progress: Progress | None
    num_waiting: int = 0
    num_active: int = 0
    batch_size: int = 0


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
        self._has_room = False  # since the waiting were told of their places
        self._active: list[Active] = []  # in the order they came, the higher priority first
        self._last_forwards: dict[Hashable, int] = {}  # by kind: when it had its turn
        self._last_turns: dict[str, int] = {}  # by caller: when one of its requests had its turn
        self._num_forwards = 0
        self._batches: dict[str, int] = {}  # by model: how many shared the latest forward
        self._sizers: dict[Hashable, BatchSizer] = {}
        self._memory_bytes = 0.0
        self._is_memory_stale = False  # what is free was measured while requests were in progress
        self._loader: threading.Thread | None = None
        self._promised: str | None = None  # the model for which others were told to leave
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._num_estimating = 0  # requests that are not in the queue yet
        self._estimates = Estimates()

    def start(self) -> None:
        """Start the thread; the preloaded models are loaded first."""
        self._thread.start()

    def close(self, patience: float = 10) -> None:
        """Stop after the current iteration; everyone who still waits is told.

        Args:
            patience: seconds to wait for an iteration, and for a load, which nothing can interrupt.
        """
        self._estimates.close()
        with self._wake:
            self._is_closing = True
            self._wake.notify()
            in_progress = [active.generation for active in self._active]
            unfinished = (*self._queue.in_order(), *filter(None, (self._admitting,)), *in_progress)
        for generation in unfinished:
            generation.cancel()
        until = time.monotonic() + patience
        threads = [thread for thread in (self._thread, self._loader) if thread is not None and thread.is_alive()]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            logger.warning("the engine is still busy after %.0f s; the process ends without waiting for it", patience)

    def check_is_ready(self) -> None:
        """Raise unless requests can run.

        Raises:
            ModelUnavailable: no preloaded model could be loaded; as long as one is there, the others fail alone.
            ModelLoading: one is not in memory yet, or the worker is going down.
        """
        preloaded = {name: slot for name, slot in self._slots.items() if slot.is_preloaded}
        for name, slot in preloaded.items():
            if slot.state == "loading":
                raise loading(name, slot)
        if all(slot.state == "failed" for slot in preloaded.values()):
            for slot in preloaded.values():
                slot.check()
        self.check_is_alive()

    def check_is_alive(self) -> None:
        """Raise unless there is somebody to run requests.

        Raises:
            ModelLoading: the worker is going down.
        """
        if self._is_closing or not self._thread.is_alive():
            raise restarting()

    def defaults(self, model: str | None) -> Mapping[str, Any]:
        """What a request to `model` may leave out.

        Raises:
            UnknownModel: no such model here.
        """
        return self._find(model)[1].defaults

    def look(self, model: str) -> Look:
        """Whether a model is in memory, on its way there, or why not; of any thread.

        Raises:
            UnknownModel: no such model here.
        """
        name, slot = self._find(model)
        with self._wake:
            num_waiting = sum(each.model == name for each in self._queue.in_order())
            num_active = sum(active.generation.model == name for active in self._active)
            batch_size = self._batches.get(name, 0) if num_active else 0
        return Look(
            slot.state, slot.reason or slot.setback, slot.num_bytes, slot.progress, num_waiting, num_active, batch_size
        )

    def load(self, model: str) -> None:
        """Have a model brought into memory, also one that failed; others may leave for it.

        Raises:
            UnknownModel: no such model here.
            ModelUnavailable: it is not to be loaded.
        """
        slot = self._find(model)[1]
        with self._wake:
            if slot.barred is not None:
                raise ModelUnavailable(slot.barred)
            if slot.is_loading:
                slot.drained = None  # nor is it to leave as soon as it is there
            elif not slot.is_loaded or slot.drained is not None:
                slot.failure, slot.setback, slot.is_wanted = None, None, True
            self._wake.notify()

    def unload(self, model: str) -> None:
        """Have a model leave memory once those who use it, or wait for it already, have been served.

        Raises:
            UnknownModel: no such model here.
        """
        name, slot = self._find(model)
        with self._wake:
            slot.is_wanted = False
            if slot.is_loaded or slot.is_loading:
                self._drain(name)
            self._wake.notify()

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
            raise loading(name, slot)
        return slot.stepper

    async def estimate(self, request: Any, model: str | None, terms: Terms) -> int | None:
        """Find out what a request will take, beside the engine's thread: others' next steps do not wait for it.

        Args:
            request: as it will be submitted.
            model: an id, or None for the default.
            terms: whose turn it takes.

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
            return await self._estimates.of(partial(stepper.cost, request), terms)
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
            ModelLoading: a model is not in memory yet and nobody is to wait for it, or the worker is going down.
            ModelUnavailable: the model could not be loaded.
            QueueFull: too many wait already.
        """
        name, slot = self._find(model)
        slot.check()
        if slot.is_awaited:
            raise loading(name, slot)
        if not (slot.is_loaded or self._limits.waits_for_models):
            self.load(name)
            raise loading(name, slot)
        seed = seed if seed is not None else secrets.randbelow(MAX_SEED + 1)
        generation = Generation(request, name, seed, terms, self._metrics[name], self._paces[name], self._withdraw)
        generation.cost = cost
        with self._wake:
            self._check_for_place()
            slot.check()  # it may have failed meanwhile
            self._queue.push(generation)
            slot.let_in(generation)
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
        return self._num_estimating + len(self._queue)

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
        waiting = Counter(generation.model for generation in self._queue.in_order())
        for name, metrics in self._metrics.items():
            metrics.queue_length.set(waiting[name])
        self._has_room = False
        num_beyond = len(self._active) + (self._admitting is not None)
        for position, generation in enumerate(self._queue.in_order(), start=num_beyond):
            generation.queue(position)

    def _work(self) -> None:
        while self._wait():
            try:
                self._unload_some()
                self._begin_load()
                self._drop_stopped()
                with default_type.kept():
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
                while not self._has_work():
                    self._wake.wait(self._seconds_to_change())
            if not self._is_closing:
                return True
        self._drop_stopped()  # that is all of them
        return False

    def _has_work(self) -> bool:
        if self._is_closing or self._next() is not None:
            return True
        return self._next_load() is not None or bool(self._next_to_leave())

    def _seconds_to_change(self) -> float | None:
        """When something is to be loaded again, or leaves because nobody has used it."""
        idle, slots = self._limits.room.idle_seconds, self._slots.values()
        times = [slot.last_used + idle for slot in slots if slot.is_loaded and not slot.is_pinned]
        if not any(slot.is_loading for slot in slots):
            times += [slot.retry_at for slot in slots if slot.is_preloaded]
        at = min(times, default=math.inf)
        return None if at == math.inf else max(0.0, at - time.monotonic())

    def _next_load(self) -> str | None:
        """Return which model is to be loaded now: that for which others left, one that is due, or the next awaited."""
        if any(slot.is_loading or slot.drained is not None for slot in self._slots.values()):
            return None
        due = (name for name, slot in self._slots.items() if slot.is_due)
        cold = (each.model for each in self._queue.in_order() if not self._slots[each.model].is_loaded)
        wanted = chain(due, cold)
        if self._promised is None:
            return next(wanted, None)
        names = list(wanted)
        return self._promised if self._promised in names else next(iter(names), None)

    def _begin_load(self) -> None:
        """Load the next model where there is room for it; else let others leave first."""
        with self._wake:
            name = self._next_load()
            if name is None or self._is_closing:
                return
            slot = self._slots[name]
            leaving = self._limits.room.leaving(self._slots, name, self._busy())
            if leaving is None:
                slot.is_preloaded = slot.is_wanted = False
                refused = self._take_out(name)
            elif leaving and slot.is_awaited and not slot.is_wanted:
                logger.info("model %s finds no room at the start; it is loaded when it is asked for", name)
                slot.is_preloaded = False
                return
            elif leaving:
                self._promised = name
                for other in leaving:
                    self._drain(other)
                return
            else:
                self._promised = None
                slot.is_loading = True
                self._loader = threading.Thread(target=self._load, args=(name,), name="loader", daemon=True)
                self._loader.start()
                return
        for generation in refused:
            end(generation, ModelUnavailable(self._limits.room.refusal(name, slot)))

    def _busy(self) -> set[str]:
        """Name the models that somebody uses or waits for."""
        return {active.generation.model for active in self._active} | {each.model for each in self._queue.in_order()}

    def _take_out(self, name: str) -> list[Generation]:
        """Let those who wait for a model leave the queue."""
        waiting = [each for each in self._queue.in_order() if each.model == name]
        return [each for each in waiting if self._leave_queue(each)]

    def _drain(self, name: str) -> None:
        """Let a model leave as soon as those have been served who wait for it now."""
        self._slots[name].drain(each for each in self._queue.in_order() if each.model == name)

    def _next_to_leave(self) -> list[str]:
        """Name the models that leave now: they were told to and are drained, or nobody has used them for long."""
        busy, waiting = {active.generation.model for active in self._active}, self._queue.in_order()
        idle_since = time.monotonic() - self._limits.room.idle_seconds
        leaving = []
        for name, slot in self._slots.items():
            if not slot.is_loaded or name in busy:
                continue
            if slot.drained is not None:
                is_leaving = not any(each in slot.drained for each in waiting)
            else:
                is_unused = slot.last_used <= idle_since and not slot.is_pinned
                is_leaving = is_unused and not any(each.model == name for each in waiting)
            if is_leaving:
                leaving.append(name)
        return leaving

    def _unload_some(self) -> None:
        with self._wake:
            leaving = self._next_to_leave()
            for name in leaving:
                self._slots[name].stepper = self._slots[name].drained = None
        if leaving:
            memory.give_back()
            self._is_memory_stale = True
            logger.info("left memory: %s", ", ".join(leaving))

    def _load(self, name: str) -> None:
        """Load a model, on the loader's thread; who waits for one that cannot be is told."""
        slot = self._slots[name]
        stepper, memory_bytes, refused, refusal = None, self._memory_bytes, [], None
        try:
            stepper = slot.load(name)
            if self._limits.room.num_bytes < slot.size:
                slot.failure = self._limits.room.refusal(name, slot)
                stepper = None
                slot.check()
            memory_bytes = self._limits.memory_bytes()
        except ModelUnavailable as error:
            refusal = error.message, error.retry_after
        with self._wake:
            slot.stepper, slot.is_loading = stepper, False
            if stepper is not None:
                self._memory_bytes, self._is_memory_stale = memory_bytes, bool(self._active)
                for other in self._limits.room.leaving(self._slots, name, self._busy()) or ():
                    self._drain(other)  # it takes more than was expected
            else:
                slot.drained, refused = None, self._take_out(name)
            self._wake.notify()
        if refusal is not None:
            for generation in refused:  # each has an error of its own: a raise would lengthen the one's traceback
                end(generation, ModelUnavailable(refusal[0], retry_after=refusal[1]))

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
                self._admitting = generation
                self._queue.serve(generation)
                self._note_queue()
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

    def _taken_up(self, generation: Generation) -> Active:
        generation.check()
        slot = self._slots[generation.model]
        if slot.stepper is None:
            raise loading(generation.model, slot)
        slot.last_used, stepper = time.monotonic(), slot.stepper
        if self._is_memory_stale and not self._active:
            self._memory_bytes, self._is_memory_stale = self._limits.memory_bytes(), False
        cost = generation.cost if generation.cost is not None else stepper.cost(generation.request)
        state = stepper.admit(generation.request, generation.seed, generation)
        generation.request = None  # which may be large; the state has what it needs
        return Active(generation, stepper, state, cost)

    def _next(self) -> Generation | None:
        """Return who can be in progress beside the others; whoever waits for memory is not overtaken.

        Whoever waits for a model is: what comes after needs another one, which is there.
        """
        num_active = Counter(active.generation.model for active in self._active)
        for generation in self._queue.in_order():
            slot = self._slots[generation.model]
            stepper = slot.stepper
            if stepper is None or (slot.drained is not None and generation not in slot.drained):
                continue
            if not self._active:
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
        are_all = limit >= len(kinds[kind]) and not always_shares
        return kind, kinds[kind] if are_all else self._in_turn(kinds[kind])[:limit]

    def _in_turn(self, actives: Sequence[Active]) -> list[Active]:
        """Order who may not all have a part in a forward: by priority, then the callers in turn.

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
            active.generation.begin(started, is_timed=active is batch[0])
        self._metrics[batch[0].generation.model].batch_size.observe(len(batch))
        self._batches[batch[0].generation.model] = len(batch)
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
                if row is LEFT_OUT:
                    continue
                self._last_turns[active.generation.caller] = active.last_turn = self._num_forwards
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
            self._slots[active.generation.model].last_used = time.monotonic()
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
