"""The keys as one gateway knows them: each is looked up once in a while, and compared at every request."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Any, Self, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import InvalidKey, KeyRevoked, KeysUnavailable, NoSuchKey
from gateway.keys import store
from gateway.keys.schema import ID, Grant, Key, KeyText

T = TypeVar("T")

logger = logging.getLogger("atelier.gateway")

NOTE_SECONDS = 60.0  # how exactly it is known when a key was used last
DUMMY = KeyText.new().digest  # compared with where there is no such key: the answer comes as late
AWAY = (SQLAlchemyError, OSError)  # OSError: a server that does not answer


class Keyring:
    """Finds who asks.

    What another gateway changes or revokes is found out within `fresh_seconds`; what this gateway does, at once.

    Args:
        database: with the keys.
        fresh_seconds: how long what the database said is believed.
        capacity: keys that are remembered, and as many ids that are none.
        now: the time in seconds.
    """

    def __init__(
        self,
        database: AsyncEngine,
        fresh_seconds: float,
        *,
        capacity: int = 10_000,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._fresh_seconds = fresh_seconds
        self._capacity = capacity
        self._now = now
        self._known: OrderedDict[str, tuple[float, Key]] = OrderedDict()  # by id, with the time they go stale
        self._unknown: OrderedDict[str, tuple[float, None]] = OrderedDict()  # apart: guesses push no key out
        self._used: set[str] = set()  # since the database was last told
        self._num_changed = 0  # or revoked, by this gateway
        self._exist = False
        self._exist_asked_at = -fresh_seconds

    @classmethod
    @asynccontextmanager
    async def open(cls, database: AsyncEngine, fresh_seconds: float) -> AsyncGenerator[Self]:
        """Open the ring, and keep writing down when keys were used."""
        keyring = cls(database, fresh_seconds)
        noting = asyncio.create_task(keyring._keep_noting(), name="key use")
        try:
            yield keyring
        finally:
            noting.cancel()
            await asyncio.wait({noting})
            await keyring.note_use()

    async def is_used(self) -> bool:
        """Whether there has ever been a key; then one is asked for, for good.

        Raises:
            KeysUnavailable: the database does not say.
        """
        if not self._exist and self._now() >= self._exist_asked_at + self._fresh_seconds:
            with unavailable():
                exist = await store.exist(self._database)
            self._exist = self._exist or exist  # the first may have been made since it was asked
            self._exist_asked_at = self._now()
        return self._exist

    async def find(self, text: str) -> Key:
        """Return the key that is written so.

        Raises:
            InvalidKey: there is none, or none any more.
            KeysUnavailable: it is not known here, and the database does not answer.
        """
        offered = KeyText.read(text)
        if offered is None:
            raise InvalidKey("this is no key of this server; its keys begin with atl_")
        key = await self._look_up(offered.id)
        is_right = compare_digest(offered.digest, DUMMY if key is None else key.digest)
        return self._in_use(key if is_right else None)

    async def holder(self, key_id: str) -> Key:
        """Return the key of this id, in whose name a link was signed.

        Raises:
            InvalidKey: there is none, or none any more.
            KeysUnavailable: it is not known here, and the database does not answer.
        """
        return self._in_use(await self._look_up(key_id))

    def _in_use(self, key: Key | None) -> Key:
        if key is None or key.revoked_at is not None:
            raise InvalidKey("there is no such key, or it has been revoked")
        if not key.is_valid(datetime.now(UTC)):
            raise InvalidKey("this key has expired")
        self._used.add(key.id)
        return key

    async def add(self, grant: Grant) -> tuple[Key, KeyText]:
        """Make a key; its text is nowhere else from then on."""
        text = KeyText.new()
        with unavailable():
            key = await store.add(self._database, text, grant)
        self._exist = True
        return key, text

    async def get(self, key_id: str) -> Key:
        """Return one key as the database has it.

        Raises:
            NoSuchKey: there is none of that id.
        """
        key = None
        if ID.fullmatch(key_id):
            with unavailable():
                key = await store.get(self._database, key_id)
        if key is None:
            raise NoSuchKey("there is no key of this id")
        return key

    async def page(self, num_keys: int, after: str | None) -> list[Key]:
        """Return the newest keys, revoked ones too.

        Raises:
            NoSuchPlace: there is no key `after`.
        """
        with unavailable():
            return await store.page(self._database, num_keys, after)

    async def change(self, key_id: str, changes: Mapping[str, Any]) -> Key:
        """Let a key be for something else from now on; what it has used stays used.

        Args:
            key_id: of the key.
            changes: fields of its grant.

        Raises:
            NoSuchKey: there is none of that id.
            KeyRevoked: it has ended for good.
        """
        grant = replace((await self.get(key_id)).grant, **changes)
        with unavailable():
            is_changed = await store.change(self._database, key_id, grant, changes.keys())
        if not is_changed:
            raise KeyRevoked("this key has been revoked, for good; make another")
        return await self._afresh(key_id)

    async def revoke(self, key_id: str) -> Key:
        """End a key.

        Raises:
            NoSuchKey: there is none of that id.
        """
        await self.get(key_id)
        with unavailable():
            await store.revoke(self._database, key_id)
        return await self._afresh(key_id)

    async def _afresh(self, key_id: str) -> Key:
        self._num_changed += 1
        self._known.pop(key_id, None)
        return await self.get(key_id)

    async def note_use(self) -> None:
        """Tell the database which keys were used since it was last told."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await store.note_use(self._database, used)
        except AWAY as error:
            logger.warning("when %d keys were used is not written down: %s", len(used), type(error).__name__)

    async def _keep_noting(self) -> None:
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            await self.note_use()

    async def _look_up(self, key_id: str) -> Key | None:
        stale_at, key = self._known.get(key_id) or self._unknown.get(key_id) or (0.0, None)
        if self._now() < stale_at:
            return key
        num_changed = self._num_changed
        with unavailable():
            key = await store.get(self._database, key_id)
        if num_changed != self._num_changed:
            return key  # it may be the one: what was read before it is not remembered
        stale_at = self._now() + self._fresh_seconds
        if key is None:
            self._remember(self._unknown, key_id, (stale_at, None))
        else:
            self._remember(self._known, key_id, (stale_at, key))
        return key

    def _remember(self, memory: OrderedDict[str, T], key_id: str, value: T) -> None:
        """Put the newest last, and let the oldest go."""
        memory[key_id] = value
        memory.move_to_end(key_id)
        if len(memory) > self._capacity:
            memory.popitem(last=False)


@contextmanager
def unavailable() -> Iterator[None]:
    """Say that the database is away in words that a client may read."""
    try:
        yield
    except AWAY as error:
        raise KeysUnavailable("keys cannot be looked up at the moment; try again") from error
