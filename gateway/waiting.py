"""Waiting only while there is a reason to; knows neither workers nor routes."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from starlette.requests import Request
from starlette.types import Receive

from gateway.errors import CallerLeft

Reason = asyncio.Task[Exception]  # ends with the error to be raised


class Patience:
    """What is awaited inside is cancelled once there is a reason to give up, and the reason is raised instead.

    Everything runs in the task that enters; only reasons have tasks of their own.
    """

    def __init__(self, seconds: float | None = None, late: Exception | None = None) -> None:
        """Have patience for `seconds`, and raise `late` then; None: without end."""
        self._timeout = asyncio.timeout(None)
        self._seconds = seconds
        self._error = late or TimeoutError()
        self._is_over = False
        self._waits_until: float | None = None
        self._look: asyncio.TimerHandle | None = None  # at whether that has passed
        self._reasons: list[Reason] = []
        self._own: list[Reason] = []
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        await self._timeout.__aenter__()
        self.wait(self._seconds)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, and leave no reason running that was begun here."""
        self._is_over = True  # for a reason that is told of already, and only now heard
        for timer in (self._timer, self._look):
            if timer is not None:
                timer.cancel()
        for reason in self._reasons:
            reason.remove_done_callback(self._give_up)
        for reason in self._own:
            reason.cancel()
        try:
            await self._timeout.__aexit__(exc_type, error, traceback)
        except TimeoutError:
            raise self._error from error

    def unless(self, reason: Reason) -> None:
        """Give up with the error that `reason` comes to; it stays the caller's to end."""
        self._reasons.append(reason)
        reason.add_done_callback(self._give_up)  # soon, where it is done already

    def unless_later(self, seconds: float, reason: Callable[[], Coroutine[Any, Any, Exception]]) -> None:
        """Begin to look for a reason after `seconds`; before, it costs no task."""

        def begin() -> None:
            self._own.append(asyncio.create_task(reason()))
            self.unless(self._own[-1])

        self._timer = asyncio.get_running_loop().call_later(seconds, begin)

    def wait(self, seconds: float | None) -> None:
        """Have patience for `seconds` from now on; None: without end.

        The many waits of a stream share a timer: what was set for an earlier one finds that there is time left.
        """
        self._waits_until = None if seconds is None else asyncio.get_running_loop().time() + seconds
        if self._waits_until is not None and (self._look is None or self._waits_until < self._look.when()):
            self._look_at(self._waits_until)

    def _look_at(self, instant: float) -> None:
        if self._look is not None:
            self._look.cancel()
        self._look = asyncio.get_running_loop().call_at(instant, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        if self._waits_until is None or self._is_over or self._timeout.expired():
            return
        if asyncio.get_running_loop().time() < self._waits_until:
            self._look_at(self._waits_until)
            return
        self._is_over = True
        self._timeout.reschedule(0)

    def _give_up(self, reason: Reason) -> None:
        if not (self._is_over or reason.cancelled() or self._timeout.expired()):
            self._is_over, self._error = True, reason.result()
            self._timeout.reschedule(0)


async def at_most(seconds: float, event: asyncio.Event) -> None:
    """Wait for an event, or so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def departure(request: Request) -> Reason:
    """Watch for the caller's leaving until the request has ended; its body must have been read."""
    left = asyncio.create_task(caller_leaves(request.receive))
    request.scope["leases"].callback(left.cancel)
    return left


async def caller_leaves(receive: Receive) -> CallerLeft:
    """Return once the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return CallerLeft("the caller left")
