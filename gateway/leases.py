"""Places that are taken while a stream lasts, and come free by themselves when nobody renews them."""

import asyncio
import logging
from collections import Counter
from typing import Protocol
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger("atelier.gateway")

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


class Leases(Protocol):
    """Counts the places that each holder has."""

    async def take(self, holder: str, num_places: int) -> str | None:
        """Take a place and return its name, or None where the holder has as many as that."""

    async def give_back(self, holder: str, place: str) -> None:
        """Give it back."""


class MemoryLeases:
    """Of one gateway; they end with it."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    async def take(self, holder: str, num_places: int) -> str | None:
        """Take a place, if there is one."""
        if self._taken[holder] >= num_places:
            return None
        self._taken[holder] += 1
        return holder

    async def give_back(self, holder: str, place: str) -> None:
        """Give it back."""
        self._taken[holder] -= 1
        if not self._taken[holder]:
            del self._taken[holder]


class RedisLeases:
    """Of all gateways that share a Redis.

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
            await self._redis.zrem(PREFIX + holder, place)
        except (RedisError, OSError) as error:
            logger.warning("a place is not given back before its time: %s", type(error).__name__)

    async def keep(self) -> None:
        """Renew what is held, for ever."""
        while True:
            await asyncio.sleep(self._milliseconds / 3000)
            try:
                await self.renew()
            except (RedisError, OSError) as error:
                logger.warning("places are not renewed: %s", type(error).__name__)

    async def renew(self) -> None:
        """Renew what is held, and not what was given back meanwhile."""
        for holder, place in list(self._held):
            await self._renew(keys=[PREFIX + holder], args=[place, self._milliseconds])
