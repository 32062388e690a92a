"""How often a key may ask, and for how much at once; counted here, or in a Redis that several gateways share."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import Caller
from gateway.errors import LimitsUnavailable, RateLimited
from gateway.leases import Leases, MemoryLeases

logger = logging.getLogger("atelier.gateway")

T = TypeVar("T")

WhenDown = Literal["allow", "refuse"]
ANSWER_SECONDS = 0.5  # for a Redis to answer; a request that finds out that it hangs is held up so long
STALL_SECONDS = 0.05  # for an answer to be read that lies there since the event loop stood still
DOWN_SECONDS = 1.0  # for which a Redis that did not answer is not asked again
LIMIT, REMAINING, RESET = (f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset"))
RATE_HEADERS = (LIMIT, REMAINING, RESET)


class PerMinute(RateLimitItemPerMinute):
    """Counted by the key alone: what it has asked for counts on when its limit is changed."""

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        """Return what the count goes by; the library's has the limit in it."""
        return "/".join((self.namespace, *map(str, identifiers), self.GRANULARITY.name))


class Limits:
    """Counts what each key asks for.

    Args:
        rates: counts the requests of a minute, which begins with the first of them.
        leases: count what is under way.
        away: the errors that mean that nothing can be counted.
        when_down: what becomes of requests then.
    """

    def __init__(
        self,
        rates: FixedWindowRateLimiter,
        leases: Leases,
        away: tuple[type[Exception], ...] = (),
        when_down: WhenDown = "allow",
    ) -> None:
        self._rates = rates
        self._leases = leases
        self._away = away
        self._when_down = when_down
        self._is_down = False
        self._down_until = 0.0

    async def take(self, caller: Caller, until: AsyncExitStack) -> None:
        """Count a request, and take a place that is given back when `until` closes.

        Raises:
            RateLimited: it is one too many.
            LimitsUnavailable: Redis is down, and nothing goes uncounted.
        """
        if caller.requests_per_minute is not None:
            await self._unless_down(self._count, caller.id, caller.requests_per_minute)
        if caller.concurrent_streams is not None:
            await self._unless_down(self._take_place, caller.id, caller.concurrent_streams, until)

    async def headers(self, caller: Caller) -> Mapping[str, str]:
        """Say how a limited key stands, as OpenAI's clients read it; nothing where nobody knows."""
        if caller.requests_per_minute is None or time.monotonic() < self._down_until:
            return {}
        item = PerMinute(caller.requests_per_minute)
        try:
            window = await self._answered(self._rates.get_window_stats(item, caller.id))
        except self._away:
            self._note_down()
            return {}
        return {LIMIT: str(item.amount), REMAINING: str(window.remaining), RESET: f"{seconds_to(window.reset_time)}s"}

    async def _answered(self, asked: Coroutine[Any, Any, T]) -> T:
        """Wait for Redis, or ask the memory; time in which our own event loop stood still is none that Redis took.

        Raises:
            TimeoutError: no answer in time.
        """
        if not self._away:
            return await asked
        task = asyncio.create_task(asked)
        try:
            for seconds in (ANSWER_SECONDS, STALL_SECONDS):
                await asyncio.wait({task}, timeout=seconds)
                if task.done():
                    return await task
        finally:
            task.cancel()
        raise TimeoutError("Redis does not answer")

    def _note_down(self) -> None:
        self._is_down, self._down_until = True, time.monotonic() + DOWN_SECONDS

    async def _count(self, key_id: str, per_minute: int) -> None:
        item = PerMinute(per_minute)
        if not await self._rates.hit(item, key_id):
            window = await self._rates.get_window_stats(item, key_id)
            message = f"this key may ask {per_minute} times a minute"
            raise RateLimited(message, seconds_to(window.reset_time))

    async def _take_place(self, key_id: str, num_places: int, until: AsyncExitStack) -> None:
        place = await self._leases.take(key_id, num_places)
        if place is None:
            raise RateLimited(f"this key may have {num_places} generations under way at once; wait for one to end", 1)
        until.push_async_callback(self._leases.give_back, key_id, place)

    async def _unless_down(self, counted: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Let what would be counted go uncounted while Redis is down, or refuse it, as the operator has set."""
        if time.monotonic() >= self._down_until:
            if self._is_down:
                self._note_down()  # the others shall not wait for what one finds out
            try:
                await self._answered(counted(*arguments))
            except RateLimited:
                self._is_down, self._down_until = False, 0.0
                raise
            except self._away as error:
                logger.warning("Redis is down (%s); limits: %s", type(error).__name__, self._when_down)
                self._note_down()
            else:
                self._is_down, self._down_until = False, 0.0
                return
        if self._when_down == "refuse":
            raise LimitsUnavailable("the limits of this key cannot be looked up at the moment")


@asynccontextmanager
async def open_limits(redis_url: str, when_down: WhenDown) -> AsyncGenerator[Limits]:
    """Open them: in memory, where there is no URL of a Redis."""
    if not redis_url:
        yield Limits(FixedWindowRateLimiter(MemoryStorage()), MemoryLeases())
        return
    from gateway.shared import open_redis  # 8 MB that others need not have

    async with open_redis(redis_url) as (rates, leases, away):
        yield Limits(rates, leases, away, when_down)


class RateHeaders:
    """Tells every caller with a limit how it stands; inside of what says who asks."""

    def __init__(self, app: ASGIApp, limits: Callable[[], Limits]) -> None:
        """Wrap `app`; the limits are there once the application has started."""
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["caller"].requests_per_minute is None:
            await self._app(scope, receive, send)
            return

        async def send_with_standing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(await self._limits().headers(scope["caller"]))
            await send(message)

        await self._app(scope, receive, send_with_standing)


def seconds_to(instant: float) -> int:
    """Whole seconds until a Unix time, none where it has passed."""
    return max(0, math.ceil(instant - time.time()))
