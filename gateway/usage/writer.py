"""Writes records in batches, behind the requests' backs and within bounded memory; knows no database."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

from prometheus_client import Counter
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from gateway.waiting import at_most

logger = logging.getLogger(__name__)

ABOUT_ROWS = ("22", "23")  # classes of SQLSTATE: data, constraints; of the first, asyncpg's adapter makes no DataError

Item = TypeVar("Item")


class Writer(Generic[Item]):
    """A bounded queue and the one task that empties it; lives in one event loop.

    A record stays in the queue until its transaction is through, so the bound covers what is being written too.

    Args:
        write: writes records in one transaction.
        capacity: records that may wait; what comes on top is dropped and counted.
        batch_rows: records in a transaction at most.
        batch_seconds: how long a record waits for others to share its transaction.
        retry_seconds: the first and the longest pause after a failure; it doubles in between.
        close_seconds: how long closing waits for what is queued; then it still waits for the statement under way,
            which a driver does not leave before its own time-out.
        dropped: counts what was dropped.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[None]],
        *,
        capacity: int = 20_000,
        batch_rows: int = 200,
        batch_seconds: float = 0.25,
        retry_seconds: tuple[float, float] = (0.1, 2.0),
        close_seconds: float = 5.0,
        dropped: Counter | None = None,
    ) -> None:
        self.dropped = 0
        self._write = write
        self._capacity = capacity
        self._batch_rows = batch_rows
        self._batch_seconds = batch_seconds
        self._retry_seconds = retry_seconds
        self._close_seconds = close_seconds
        self._dropped_counter = dropped
        self._queue: deque[Item] = deque()
        self._num_taken = 0  # records that ever entered the queue
        self._num_settled = 0  # and that left it
        self._settled = asyncio.Condition()
        self._arrived = asyncio.Event()  # the queue is not empty
        self._hurry = asyncio.Event()  # a batch is full, or somebody waits for it
        self._is_closed = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="usage writer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def put(self, record: Item) -> None:
        """Queue a record, or drop it where the queue is full or closed; never waits, never raises."""
        if self._is_closed or len(self._queue) >= self._capacity:
            self._drop(1)
            return
        self._queue.append(record)
        self._num_taken += 1
        self._arrived.set()
        if len(self._queue) >= self._batch_rows:
            self._hurry.set()

    async def flush(self) -> None:
        """Wait until all that was put so far is written."""
        target = self._num_taken
        self._hurry.set()
        async with self._settled:
            await self._settled.wait_for(lambda: self._num_settled >= target)

    async def aclose(self) -> None:
        """Take no more records, write what is queued while the time lasts, and stop."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._close_seconds):
                await self.flush()
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._queue:
            logger.error("usage log: closed with %d records unwritten", len(self._queue))
            self._drop(len(self._queue))
            self._queue.clear()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await at_most(self._batch_seconds, self._hurry)
            self._hurry.clear()
            num_waiting = len(self._queue)  # what comes later waits for its own batch
            for start in range(0, num_waiting, self._batch_rows):
                await self._settle(min(self._batch_rows, num_waiting - start))

    async def _settle(self, num_records: int) -> None:
        await self._write_or_refuse(list(islice(self._queue, num_records)))
        for _ in range(num_records):
            self._queue.popleft()
        if not self._queue:
            self._arrived.clear()
        async with self._settled:
            self._num_settled += num_records
            self._settled.notify_all()

    async def _write_or_refuse(self, batch: Sequence[Item]) -> None:
        """Write a batch, however long the database is away; drop it only if it is the batch that cannot be written."""
        pause, longest = self._retry_seconds
        while True:
            try:
                return await self._write(batch)
            except (SQLAlchemyError, OSError) as error:  # OSError: a server that does not answer
                if _is_about_the_rows(error):
                    logger.exception("usage log: %d records refused", len(batch))
                    return self._drop(len(batch))
                logger.warning(
                    "usage log: cannot write, trying again in %.1f s: %s", pause, getattr(error, "orig", error)
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    def _drop(self, num_records: int) -> None:
        self.dropped += num_records
        if self._dropped_counter is not None:
            self._dropped_counter.inc(num_records)


def _is_about_the_rows(error: Exception) -> bool:
    """Tell a row that no database would take from a database that is away, locked or full."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        return isinstance(error, DataError | IntegrityError) or state.startswith(ABOUT_ROWS)
    return isinstance(error, StatementError)
