"""What is done for the usage log beside the requests: joining what came at the same instant, deleting what is old."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.usage.rollup import join_late
from gateway.usage.schema import ReceiptRow, Usage

BATCH_ROWS = 500  # in a transaction: requests write too
PAUSE_SECONDS = 0.05  # between two of them
INTERVAL_SECONDS = 15.0

logger = logging.getLogger(__name__)


@asynccontextmanager
async def kept_in_order(engine: AsyncEngine, retention_days: int) -> AsyncGenerator[None]:
    """Keep the log in order meanwhile.

    Args:
        engine: of the database.
        retention_days: how long rows stay; 0: for ever.
    """
    task = asyncio.create_task(keep_in_order(engine, retention_days), name="usage housekeeping")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def keep_in_order(engine: AsyncEngine, retention_days: int) -> None:
    """Do it again and again; a database that is away or busy is tried again later."""
    while True:
        try:
            await join_late(engine)
            if retention_days:
                await delete_before(engine, oldest_day(retention_days))
        except (SQLAlchemyError, OSError) as error:
            logger.warning("usage log: housekeeping has to wait: %s", type(error).__name__)
        await asyncio.sleep(INTERVAL_SECONDS)


def oldest_day(retention_days: int) -> date:
    """Return the first day whose rows are kept, in UTC; whole days are, so that the roll-up can be made anew."""
    return datetime.now(UTC).date() - timedelta(days=retention_days)


async def delete_before(engine: AsyncEngine, day: date) -> None:
    """Delete rows and receipts from before a day, in small transactions; the roll-up stays."""
    begin = datetime.combine(day, time(), UTC)
    old_rows = select(Usage.id).where(Usage.started_at < begin).order_by(Usage.started_at).limit(BATCH_ROWS)
    orphans = select(ReceiptRow.id).where(ReceiptRow.usage_id.is_(None), ReceiptRow.received_at < begin)
    num_deleted = BATCH_ROWS
    while num_deleted == BATCH_ROWS:
        async with engine.begin() as connection:
            ids = (await connection.scalars(delete(Usage).where(Usage.id.in_(old_rows)).returning(Usage.id))).all()
            await connection.execute(delete(ReceiptRow).where(ReceiptRow.usage_id.in_(ids)))
            gone = await connection.execute(delete(ReceiptRow).where(ReceiptRow.id.in_(orphans.limit(BATCH_ROWS))))
        num_deleted = max(len(ids), gone.rowcount)
        await asyncio.sleep(PAUSE_SECONDS)
