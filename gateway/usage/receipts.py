"""Writes receipts down, each once however often it is sent."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.database.types import Tables
from gateway.usage.rollup import join
from gateway.usage.schema import ReceiptRow
from services.schema import UNITS, Receipt


async def take(engine: AsyncEngine, receipts: Sequence[Receipt]) -> None:
    """Write receipts in one transaction, and count them where their requests' rows are there already."""
    if receipts:
        async with engine.begin() as connection:
            await write(connection, receipts)


async def write(connection: AsyncConnection, receipts: Sequence[Receipt]) -> None:
    """The same in a transaction that there is already."""
    now = datetime.now(UTC)
    rows = [
        {
            **receipt.model_dump(exclude={"units"}),
            **{unit: receipt.units.get(unit, 0) for unit in UNITS},
            "received_at": now,
        }
        for receipt in receipts
    ]
    await connection.execute(inserting(connection.dialect.name), rows)
    await join(connection, {receipt.request_id for receipt in receipts})


@cache
def inserting(dialect: str) -> Executable:
    """Return the statement that writes those down that are new; to make it takes longer than to run it."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(Tables.metadata.tables[ReceiptRow.__tablename__]).on_conflict_do_nothing()
