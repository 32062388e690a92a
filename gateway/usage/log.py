"""The usage log of one gateway: what the middleware puts into and the routes read from."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from prometheus_client import Counter
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database.types import Tables
from gateway.usage.queries import Window, page, pages
from gateway.usage.receipts import take
from gateway.usage.rollup import count_records
from gateway.usage.schema import Entry, Record, Usage
from gateway.usage.summary import Bucket, Question, Width, summarize
from gateway.usage.writer import Writer
from services.schema import Receipt

INSERTION = insert(Tables.metadata.tables[Usage.__tablename__])  # a mapped class would be looked at each time


class UsageLog:
    """A table and the writer in front of it."""

    def __init__(self, database: AsyncEngine, writer: Writer[Record]) -> None:
        self._database = database
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database: AsyncEngine, *, capacity: int = 20_000, dropped: Counter | None = None
    ) -> AsyncGenerator[Self]:
        """Open the log, and at the end write what is queued.

        Args:
            database: with the tables in it.
            capacity: records that may wait to be written; what comes on top is dropped.
            dropped: counts what was dropped.
        """

        async def write(records: Sequence[Record]) -> None:
            await append(database, records)

        async with Writer(write, capacity=capacity, dropped=dropped) as writer:
            yield cls(database, writer)

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

    async def take(self, receipts: Sequence[Receipt]) -> None:
        """Write receipts down, each once however often it comes."""
        await take(self._database, receipts)

    async def summarize(self, question: Question, width: Width, num_buckets: int) -> list[Bucket]:
        """Add the requests of a time up, from the roll-up."""
        return await summarize(self._database, question, width, num_buckets)

    async def page(self, window: Window, num_rows: int) -> list[Entry]:
        """Return the newest entries of the window."""
        return await page(self._database, window, num_rows)

    def pages(self, window: Window, num_rows: int | None = None) -> AsyncGenerator[list[Entry]]:
        """Yield the newest entries of the window, all where `num_rows` is None, in pages."""
        return pages(self._database, window, num_rows)


async def append(database: AsyncEngine, records: Sequence[Record]) -> None:
    """Write records in one transaction: all of them, or an error and none."""
    async with database.begin() as connection:
        await connection.execute(INSERTION, [vars(record) for record in records])
        await count_records(connection, records)
