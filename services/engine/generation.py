"""One request on its way through the engine: followed from the event loop, advanced from the engine's thread."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from services.engine.events import Done, Event, Output, Progress, Queued, Started
from services.engine.metrics import Ending, GenerationMetrics
from services.errors import Cancelled, DeadlineExceeded, GenerationFailed, ServiceError

TOO_LATE = "the deadline passed before the result was there; ask for less or allow more time"


class Run(Protocol):
    """What a model sees of its request while it works on it; every call comes from the engine's thread."""

    def emit(self, data: Any) -> None:
        """Hand on a piece of the result."""

    def advance(self, step: int, steps: int) -> None:
        """Report that iteration `step` of `steps` is over.

        Raises:
            Cancelled: the caller left.
            DeadlineExceeded: the caller's deadline has passed.
        """


class Generation:
    """Iterate it for events; `cancel` it when nobody wants them any more.

    The iterator ends after `Done`, and raises the `ServiceError` that ended the generation otherwise.
    """

    def __init__(self, request: Any, model: str, seed: int, deadline: float, metrics: GenerationMetrics) -> None:
        """Take a request that was admitted; must be called from the event loop that follows it.

        Args:
            request: what the model's `generate` is given.
            model: the id of the model that serves it.
            seed: the seed in use, drawn where the caller gave none.
            deadline: seconds from now after which the result is of no use.
            metrics: where its iterations are counted.
        """
        self.request = request
        self.model = model
        self.seed = seed
        self._expires_at = time.monotonic() + deadline
        self._metrics = metrics
        self.is_cancelled = False
        self._iteration_began = 0.0
        self._events: asyncio.Queue[Event | ServiceError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Let the model stop at its next iteration; nothing happens when it is through."""
        self.is_cancelled = True

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until `Done`."""
        while True:
            try:
                async with asyncio.timeout(self._expires_at - time.monotonic()):
                    event = await self._events.get()
            except TimeoutError:  # also while it still waits behind others
                self.cancel()
                raise DeadlineExceeded(TOO_LATE) from None
            if isinstance(event, ServiceError):
                raise event
            yield event
            if isinstance(event, Done):
                return

    def queue(self, position: int) -> None:
        """Say that it is accepted, with `position` requests ahead."""
        self._post(Queued(position))

    def start(self) -> None:
        """Say that the model works on it from now on."""
        self._iteration_began = time.monotonic()
        self._post(Started())

    def check(self) -> None:
        """Raise when nobody wants the result any more.

        Raises:
            Cancelled: the caller left.
            DeadlineExceeded: the caller's deadline has passed.
        """
        if self.is_cancelled:
            raise Cancelled
        if time.monotonic() > self._expires_at:
            raise DeadlineExceeded(TOO_LATE)

    def emit(self, data: Any) -> None:
        """Hand on a piece of the result."""
        self._post(Output(data))

    def advance(self, step: int, steps: int) -> None:
        """Count an iteration, tell about it, and stop here when nobody wants the rest."""
        now = time.monotonic()
        self._metrics.iterations.inc()
        self._metrics.iteration_seconds.observe(now - self._iteration_began)
        self._iteration_began = now
        if self.is_cancelled:
            self._metrics.iterations_after_leave.inc()
        self.check()
        self._post(Progress(step, steps))

    def finish(self, usage: Mapping[str, int], finish_reason: str) -> None:
        """Say that the result is whole."""
        self._metrics.endings[Ending.COMPLETE].inc()
        self._post(Done(usage, finish_reason))

    def leave(self) -> None:
        """Say that it stopped because its caller left, or because the worker is going down."""
        self._metrics.endings[Ending.LEFT].inc()
        self._post(GenerationFailed("the worker is stopping; try again"))

    def fail(self, error: ServiceError) -> None:
        """Say what ended it."""
        self._metrics.endings[Ending.FAILED].inc()
        self._post(error)

    def _post(self, event: Event | ServiceError) -> None:
        # From any thread, and also when the follower's loop is gone.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
