"""The usage log of one gateway: what the middleware puts into and the routes read from."""

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Self

from prometheus_client import Counter
from sqlalchemy import Dialect, insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database.types import Tables
from gateway.errors import UsageUnavailable
from gateway.usage.queries import Window, page, pages
from gateway.usage.receipts import take
from gateway.usage.rollup import count_records
from gateway.usage.schema import Entry, Record, Usage
from gateway.usage.summary import Bucket, Question, Width, summarize
from gateway.usage.writer import Writer
from services.schema import Receipt

logger = logging.getLogger("atelier.gateway")

AWAY = (SQLAlchemyError, OSError)  # OSError: a server that does not answer
TABLE = Tables.metadata.tables[Usage.__tablename__]
COLUMNS = tuple(field.name for field in fields(Record))


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
        with unavailable():
            await take(self._database, receipts)

    async def summarize(self, question: Question, width: Width, num_buckets: int) -> list[Bucket]:
        """Add the requests of a time up, from the roll-up."""
        with unavailable():
            return await summarize(self._database, question, width, num_buckets)

    async def page(self, window: Window, num_rows: int) -> list[Entry]:
        """Return the newest entries of the window."""
        with unavailable():
            return await page(self._database, window, num_rows)

    async def pages(self, window: Window, num_rows: int | None = None) -> AsyncGenerator[list[Entry]]:
        """Yield the newest entries of the window, all where `num_rows` is None, in pages."""
        with unavailable():
            async with aclosing(pages(self._database, window, num_rows)) as found:
                async for entries in found:
                    yield entries


@contextmanager
def unavailable() -> Iterator[None]:
    """Say that the database is away in words that a client may read."""
    try:
        yield
    except AWAY as error:
        logger.warning("the usage log cannot be asked: %s", type(error).__name__)
        raise UsageUnavailable("the usage log cannot be reached at the moment; try again") from error


async def append(database: AsyncEngine, records: Sequence[Record]) -> None:
    """Write records in one transaction: all of them, or an error and none."""
    async with database.begin() as connection:
        statement, rows = insertion(connection.dialect)
        await connection.exec_driver_sql(statement, rows(records))
        await count_records(connection, records)


@lru_cache(maxsize=8)
def insertion(dialect: Dialect) -> tuple[str, Callable[[Sequence[Record]], list[tuple[object, ...]]]]:
    """Return an INSERT in the driver's own words, and what makes records ready for it.

    SQLAlchemy would make each row's values ready by name, which takes four times as long, and a request has one row.
    """
    compiled = insert(TABLE).inline().compile(dialect=dialect, column_keys=COLUMNS)
    ready = [TABLE.c[name].type.dialect_impl(dialect).bind_processor(dialect) or same for name in COLUMNS]
    values_of = attrgetter(*COLUMNS)

    def rows(records: Sequence[Record]) -> list[tuple[object, ...]]:
        return [tuple(make(value) for make, value in zip(ready, values_of(record), strict=True)) for record in records]

    return str(compiled), rows


def same(value: object) -> object:
    """What a driver takes as it is."""
    return value
