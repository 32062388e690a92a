"""One request on its way through the engine: followed from the event loop, advanced from the engine's thread."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from services.engine import memory
from services.engine.events import Done, Event, Output, Preview, Progress, Queued, Started
from services.engine.mail import mail_of
from services.engine.metrics import Ending, GenerationMetrics
from services.errors import Cancelled, DeadlineExceeded, ModelLoading, ServiceError

logger = logging.getLogger("atelier.engine")

MAX_UNREAD = 100  # events; a follower who is slower than the model misses some of the progress, but no output


def restarting() -> ModelLoading:
    """What those are told who come, or still wait, while the worker goes down."""
    return ModelLoading("the worker is restarting; try again in a few seconds", retry_after=5)


@dataclass(frozen=True)
class Tally:
    """What came of a generation, however it ended.

    Args:
        made: what was really made, in the modality's own units.
        iterations: that were run for it.
    """

    model: str
    ending: Ending
    made: Mapping[str, float] = field(default_factory=dict)
    iterations: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0


def untold(tally: Tally) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Terms:
    """On what terms a caller waits.

    Args:
        deadline: seconds after which the result is of no use.
        caller: who asks; callers take turns.
        priority: the higher is served first.
        num_previews: how many sketches of the result are wanted on the way.
        wants_progress: whether each iteration is told of; to wake an event loop for what it ignores is not free.
        tell: told what came of it, once and from any thread; must not wait.
    """

    deadline: float
    caller: str = ""
    priority: int = 0
    num_previews: int = 0
    wants_progress: bool = True
    tell: Callable[[Tally], None] = untold


@dataclass
class Pace:
    """What iterations of a model took when they were last measured, in seconds; its first ones are another matter."""

    seconds: float | None = None


class Run(Protocol):
    """What a model sees of its request while it works on it; every call comes from the engine's thread."""

    def emit(self, data: Any) -> None:
        """Hand on a piece of the result."""

    def count(self, **units: float) -> None:
        """Count what was made just now, before `advance`: it is paid for also if nobody waits for the rest."""

    def advance(self, step: int, steps: int) -> None:
        """Report that iteration `step` of `steps` is over.

        Raises:
            Cancelled: the caller left.
            DeadlineExceeded: the caller's deadline has passed.
        """

    def sketch(self, make: Callable[[], Any]) -> None:
        """Hand on what `make` returns, uint8 of shape (height, width, 3) or None, if it is time for a sketch."""


class Followed(Protocol):
    """What an answer knows of who makes it: a generation, or several at once."""

    seed: int
    model: str

    @property
    def position(self) -> int | None:
        """Requests that were ahead when it was accepted."""

    @property
    def num_iterations(self) -> int:
        """So far."""

    @property
    def seconds_queued(self) -> float:
        """How long it waited, so far or until it started."""

    @property
    def seconds_run(self) -> float:
        """How long ago it started; 0 if it has not."""

    def cancel(self) -> None:
        """Let the model stop at its next iteration."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Follow it; there is one follower."""


class Generation:
    """Iterate it for events; `cancel` it when nobody wants them any more.

    The iterator ends after `Done`, and raises the `ServiceError` that ended the generation otherwise.
    """

    def __init__(
        self,
        request: Any,
        model: str,
        seed: int,
        terms: Terms,
        metrics: GenerationMetrics,
        pace: Pace,
        withdraw: Callable[["Generation"], None],
    ) -> None:
        """Take a request that was admitted; must be called from the event loop that follows it.

        Args:
            request: what the model's `generate` is given.
            model: the id of the model that serves it.
            seed: the seed in use, drawn where the caller gave none.
            terms: on what terms its caller waits.
            metrics: where its iterations are counted.
            pace: of its model; shared by all of its generations.
            withdraw: called when it stops early, so that it does not go on waiting for its turn.
        """
        self.context = copy_context()  # log lines about it name the request that it serves
        self.request: Any = request  # None once the model has taken it up, or it is over
        self.cost: int | None = None  # bytes that it takes while it runs; None: not known yet
        self.model = model
        self.seed = seed
        self.caller = terms.caller
        self.priority = terms.priority
        self.position: int | None = None  # when it was accepted
        self._last_position: int | None = None
        self.num_iterations = 0
        self._made: Counter[str] = Counter()
        self._tell = terms.tell
        self.eta: float | None = None  # seconds; None: not known yet
        self._num_previews = terms.num_previews
        self._wants_progress = terms.wants_progress
        self._num_shown = 0
        self._arrived_at = time.monotonic()
        self._started_at: float | None = None
        self._expires_at = self._arrived_at + terms.deadline
        self._metrics = metrics
        self._pace = pace
        self._first: tuple[int, float] | None = None  # the first step that was reached, and when
        self._reached_at = 0.0  # the present one
        self._withdraw = withdraw
        self._stopped_by: type[Cancelled | DeadlineExceeded] | None = None
        self._iteration_began: float | None = None
        self._progress = 0, 0
        self._num_posted = self._num_read = 0
        self._is_over = False
        self._events: asyncio.Queue[Event | ServiceError] = asyncio.Queue()
        self.mail = mail_of(asyncio.get_running_loop())

    def cancel(self) -> None:
        """Let the model stop at its next iteration; nothing happens when it is through."""
        self._stop(Cancelled)

    def __aiter__(self) -> Self:
        """Follow it; there is one follower."""
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event."""
        if self._is_over:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(self._expires_at - time.monotonic()):
                event = await self._events.get()
        except TimeoutError:  # also while it still waits behind others
            self._stop(DeadlineExceeded)
            event = DeadlineExceeded()
        self._num_read += 1
        self._is_over = isinstance(event, Done | ServiceError)
        if isinstance(event, ServiceError):
            raise event
        return event

    @property
    def seconds_queued(self) -> float:
        """How long it waited, so far or until it started."""
        return (self._started_at or time.monotonic()) - self._arrived_at

    @property
    def seconds_run(self) -> float:
        """How long ago it started; 0 if it has not."""
        return time.monotonic() - self._started_at if self._started_at is not None else 0.0

    def queue(self, position: int) -> None:
        """Say that it waits with `position` requests ahead, if that is news."""
        if self.position is None:
            self.position = position
        if position != self._last_position:
            self._last_position = position
            self._post(Queued(position))

    def check(self) -> None:
        """Raise when nobody wants the result any more.

        Raises:
            Cancelled: the caller left.
            DeadlineExceeded: the caller's deadline has passed.
        """
        self._check(time.monotonic())

    def is_unwanted(self, now: float) -> bool:
        """Whether nobody wants the result any more at `now`, by the monotonic clock."""
        if self._stopped_by is None and now > self._expires_at:
            self._stopped_by = DeadlineExceeded
        return self._stopped_by is not None

    def _check(self, now: float) -> None:
        if self.is_unwanted(now) and self._stopped_by is not None:
            raise self._stopped_by

    def begin(self, now: float, *, is_timed: bool) -> None:
        """Begin a forward; the first one says that the model works on it from now on.

        Args:
            now: by the monotonic clock.
            is_timed: whether its iterations are timed here; of those that share a forward, one is.
        """
        self._iteration_began = now if is_timed else None
        if self._started_at is None:
            self._started_at = now
            self._post(Started())

    def count(self, **units: float) -> None:
        """Count what was made just now."""
        self._made.update(units)

    def emit(self, data: Any) -> None:
        """Hand on a piece of the result."""
        self._post(Output(data))

    def advance(self, step: int, steps: int) -> None:
        """Count an iteration, tell about it, and stop here when nobody wants the rest."""
        now = time.monotonic()
        self.num_iterations += 1
        self._metrics.iterations.inc()
        if self._iteration_began is not None:
            self._metrics.iteration_seconds.observe(now - self._iteration_began)
            self._iteration_began = now
        if self._stopped_by is Cancelled:
            self._metrics.iterations_after_leave.inc()
        self._check(now)
        self._estimate(step, steps, now)
        self._progress = step, steps
        if self._wants_progress and (self._num_posted - self._num_read < MAX_UNREAD or step == steps):
            self._post(Progress(step, steps, self.eta))

    def _estimate(self, step: int, steps: int, now: float) -> None:
        """Guess when it will be through: by its pace since the first step, which encodes, or else by its model's."""
        began = self._started_at or now
        if step != self._progress[0]:
            self._reached_at = now
            if self._first is None:
                self._first = step, now
                if step == steps and self._pace.seconds is None:
                    self._pace.seconds = (now - began) / step
            elif step > self._first[0]:
                self._pace.seconds = (now - self._first[1]) / (step - self._first[0])
        if step == steps:
            self.eta = 0.0
        elif self._pace.seconds is not None:
            since = now - (self._reached_at if step else began)
            self.eta = max(0.0, self._pace.seconds * (steps - step) - since)

    def sketch(self, make: Callable[[], Any]) -> None:
        """Hand on a sketch, if it is time for one: those that the caller wants are spread over the iterations."""
        step, steps = self._progress
        if step >= steps or step * (self._num_previews + 1) < steps * (self._num_shown + 1):
            return
        try:
            picture = make()
        except Exception as error:  # for want of a sketch nobody loses the picture
            logger.warning("model %s: a preview failed: %s", self.model, error)
            self._num_shown += 1
            if memory.is_out_of_memory(error):
                memory.give_back()
            return
        if picture is not None:
            self._num_shown += 1
            self._post(Preview(step, picture))

    def finish(self, finish_reason: str) -> None:
        """Say that the result is whole."""
        self._end(Ending.COMPLETE, Done(dict(self._made), finish_reason))

    def leave(self) -> None:
        """Say that it stopped because its caller left, or because the worker is going down."""
        self._end(Ending.LEFT, restarting())

    def fail(self, error: ServiceError) -> None:
        """Say what ended it."""
        ending = Ending.LATE if isinstance(error, DeadlineExceeded) else Ending.FAILED
        self._end(ending, error.with_traceback(None))  # whose frames hold the model's tensors

    def _stop(self, reason: type[Cancelled | DeadlineExceeded]) -> None:
        self._stopped_by = self._stopped_by or reason
        self._withdraw(self)

    def _end(self, ending: Ending, event: Done | ServiceError) -> None:
        self.request = None
        self._metrics.endings[ending].inc()
        seconds = self.seconds_queued, self.seconds_run
        self._tell(Tally(self.model, ending, dict(self._made), self.num_iterations, *seconds))
        self._post(event)

    def _post(self, event: Event | ServiceError) -> None:
        self._num_posted += 1
        self.mail.post(self._events, event)
