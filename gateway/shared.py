"""Limits that several gateways count together, in a Redis."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import uuid4

from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.limits import ANSWER_SECONDS

logger = logging.getLogger("atelier.gateway")

AWAY = (RedisError, OSError)
REDIS_SECONDS = 1.0  # for an answer of Redis
LEASE_SECONDS = 30.0  # how long the places of a gateway that was killed stay taken
PREFIX = "atelier:leases:"

# One sorted set for each holder: a member for each place, scored with the end of its lease in ms, on Redis's clock.
TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
RENEW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


@asynccontextmanager
async def open_redis(
    url: str,
) -> AsyncGenerator[tuple[FixedWindowRateLimiter, "RedisLeases", tuple[type[Exception], ...]]]:
    """Connect, and keep renewing what is held; give what `Limits` takes."""
    async with Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 1),  # at once: a connection that lay idle may be one to a Redis that was restarted
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
    ) as redis:
        storage = RedisStorage(
            url,
            implementation="redispy",
            key_prefix="atelier:limits",
            connection_pool=redis.connection_pool,  # type: ignore[arg-type] # documented, and typed too narrowly
        )
        leases = RedisLeases(redis)
        keeping = asyncio.create_task(leases.keep(), name="leases")
        try:
            yield FixedWindowRateLimiter(storage), leases, AWAY
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})


class RedisLeases:
    """Places of all gateways that share a Redis; they come free by themselves when nobody renews them.

    Args:
        redis: where they are counted.
        seconds: after which a place that is not renewed is free.
    """

    def __init__(self, redis: Redis, seconds: float = LEASE_SECONDS) -> None:
        self._redis = redis
        self._milliseconds = round(seconds * 1000)
        self._take = redis.register_script(TAKE)
        self._renew = redis.register_script(RENEW)
        self._held: set[tuple[str, str]] = set()  # holder and place

    async def take(self, holder: str, num_places: int) -> str | None:
        """Take a place, if there is one."""
        place = uuid4().hex
        if not await self._take(keys=[PREFIX + holder], args=[place, num_places, self._milliseconds]):
            return None
        self._held.add((holder, place))
        return place

    async def give_back(self, holder: str, place: str) -> None:
        """Give it back, or leave it to the clock where Redis is away."""
        self._held.discard((holder, place))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # a request that ends waits for it
                await self._redis.zrem(PREFIX + holder, place)
        except AWAY as error:
            logger.warning("a place is not given back before its time: %s", type(error).__name__)

    async def keep(self) -> None:
        """Renew what is held, for ever."""
        while True:
            await asyncio.sleep(self._milliseconds / 3000)
            try:
                await self.renew()
            except AWAY as error:
                logger.warning("places are not renewed: %s", type(error).__name__)

    async def renew(self) -> None:
        """Renew what is held, and not what was given back meanwhile."""
        for holder, place in list(self._held):
            await self._renew(keys=[PREFIX + holder], args=[place, self._milliseconds])
