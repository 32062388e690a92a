"""Writes receipts down, each once however often it is sent."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

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
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    await connection.execute(insert(ReceiptRow).on_conflict_do_nothing(), rows)
    await join(connection, {receipt.request_id for receipt in receipts})
