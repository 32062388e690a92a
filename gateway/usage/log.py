"""The usage log of one gateway: what the middleware puts into and the routes read from."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

from prometheus_client import Counter

from gateway.usage.queries import Window, page, pages
from gateway.usage.schema import Entry, Record
from gateway.usage.store import Store
from gateway.usage.writer import Writer


class UsageLog:
    """A store and the writer in front of it."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, capacity: int = 20_000, busy_seconds: float = 30, dropped: Counter | None = None
    ) -> AsyncGenerator[Self]:
        """Open the log, and at the end write what is queued and close it.

        Args:
            url: SQLAlchemy's, with an asynchronous driver, such as `sqlite+aiosqlite:///var/usage.db`.
            capacity: records that may wait to be written; what comes on top is dropped.
            busy_seconds: how long SQLite waits for another connection's lock.
            dropped: counts what was dropped.
        """
        async with (
            Store.open(url, busy_seconds=busy_seconds) as store,
            Writer(store.append, capacity=capacity, dropped=dropped) as writer,
        ):
            yield cls(store, writer)

    @property
    def dropped(self) -> int:
        """Records that were never written."""
        return self._writer.dropped

    def put(self, record: Record) -> None:
        """Queue a record, or drop it where the queue is full or closed; never waits, never raises."""
        self._writer.put(record)

    async def flush(self) -> None:
        """Wait until all that was put so far is written."""
        await self._writer.flush()

    async def page(self, window: Window, num_rows: int) -> list[Entry]:
        """Return the newest entries of the window."""
        return await page(self._store.engine, window, num_rows)

    def pages(self, window: Window, num_rows: int | None = None) -> AsyncGenerator[list[Entry]]:
        """Yield the newest entries of the window, all where `num_rows` is None, in pages."""
        return pages(self._store.engine, window, num_rows)
