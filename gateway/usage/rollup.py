"""Keeps the daily roll-up true: what is written changes it in the same transaction; it can be made anew from the rows.

A receipt and its request's row come in any order. Whichever comes second joins them; `join_late` does it for two that
came at the same instant, in transactions that did not see each other.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Executable, bindparam, case, delete, exists, func, select, text, update
from sqlalchemy import Row as Selected
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.usage.schema import Made, ReceiptRow, Record, Usage, UsageDay

KEY = ("day", "caller", "owner", "model", "modality")
MADE = tuple(Made.__annotations__)
SEEN = ("requests", "failures", "bytes_out", "response_seconds")
SAID: tuple[Any, ...] = tuple(getattr(ReceiptRow, name) for name in MADE)
COUNTED: tuple[Any, ...] = (
    *(Usage.id, Usage.started_at, Usage.caller, Usage.owner, Usage.model, Usage.modality),
    *(Usage.successful, Usage.bytes_out, Usage.response_seconds),
)
BATCH = 500  # receipts that are joined in one transaction

Key = tuple[date, str, str, str, str]
Numbers = defaultdict[Key, Counter[str]]  # to be added to the roll-up
AnyRow = Selected[*tuple[Any, ...]]


async def count_records(connection: AsyncConnection, records: Sequence[Record]) -> None:
    """Count rows that this transaction has written, and join them with receipts that came before."""
    numbers: Numbers = defaultdict(Counter)
    for record in records:
        numbers[key_of(record)].update(seen(record))
    await join_into(numbers, connection, {record.request_id for record in records})
    await add(connection, numbers)


async def join(connection: AsyncConnection, request_ids: Collection[str]) -> None:
    """Give receipts to the rows of their requests, and count what they say on the requests' days."""
    numbers: Numbers = defaultdict(Counter)
    await join_into(numbers, connection, request_ids)
    await add(connection, numbers)


async def join_into(numbers: Numbers, connection: AsyncConnection, request_ids: Collection[str]) -> None:
    """Join, and say what changes; receipts that somebody else joins just now are left to them."""
    joined = (await connection.execute(joining(), {"request_ids": list(request_ids)})).all()
    if not joined:
        return
    ids = {receipt.usage_id for receipt in joined}
    found = select(*COUNTED).where(Usage.id.in_(ids)).order_by(Usage.id).with_for_update()
    rows = {row.id: row for row in await connection.execute(found)}
    for receipt in joined:
        row = rows[receipt.usage_id]
        if receipt.model and not row.model:
            rows[row.id] = row = await name_model(connection, row, receipt, numbers)
        numbers[key_of(row)].update({name: getattr(receipt, name) for name in MADE})


async def join_late(engine: AsyncEngine) -> None:
    """Join receipts and rows that did not see each other."""
    while True:
        async with engine.connect() as connection:
            waiting = (
                select(ReceiptRow.request_id)
                .distinct()
                .where(ReceiptRow.usage_id.is_(None), exists().where(Usage.request_id == ReceiptRow.request_id))
            )
            request_ids = (await connection.scalars(waiting.limit(BATCH))).all()
        if request_ids:
            async with engine.begin() as connection:
                await join(connection, request_ids)
        if len(request_ids) < BATCH:
            return


async def recount_since(engine: AsyncEngine, day: date) -> None:
    """Make the roll-up of all days with rows anew, from `day` on, each in a transaction of its own."""
    async with engine.connect() as connection:
        ends = select(func.min(Usage.started_at), func.max(Usage.started_at))
        first, last = (await connection.execute(ends)).one()
    if first is None:
        return
    day = max(day, first.date())
    while day <= last.date():
        await recount(engine, day)
        day += timedelta(days=1)


async def recount(engine: AsyncEngine, day: date) -> None:
    """Make a day's roll-up anew from its rows, all of which must still be there; others may write meanwhile."""
    begin = datetime.combine(day, time(), UTC)
    of_day = Usage.started_at >= begin, Usage.started_at < begin + timedelta(days=1)
    key = Usage.caller, Usage.owner, Usage.model, Usage.modality
    failures = func.sum(case((Usage.successful, 0), else_=1))
    asked = select(*key, func.count(), failures, func.sum(Usage.bytes_out), func.sum(Usage.response_seconds))
    sums = [func.sum(getattr(ReceiptRow, name)) for name in MADE]
    said = select(*key, *sums).join(ReceiptRow, ReceiptRow.usage_id == Usage.id)
    async with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's only writer is this one, from the first statement on
            await connection.execute(text("LOCK TABLE usage_days IN EXCLUSIVE MODE"))
        await connection.execute(delete(UsageDay).where(UsageDay.day == day))
        numbers: Numbers = defaultdict(Counter)
        for names, statement in ((SEEN, asked), (MADE, said)):
            for row in await connection.execute(statement.where(*of_day).group_by(*key)):
                numbers[day, *row[:4]].update(dict(zip(names, row[4:], strict=True)))
        await add(connection, numbers)


async def name_model(connection: AsyncConnection, row: AnyRow, receipt: AnyRow, numbers: Numbers) -> AnyRow:
    """Write into a row which model worked on it, as only the receipt says; and count it there."""
    named = (
        update(Usage).where(Usage.id == row.id).values(model=receipt.model, modality=row.modality or receipt.modality)
    )
    changed = (await connection.execute(named.returning(*COUNTED))).one()
    numbers[key_of(row)].subtract(seen(row))
    numbers[key_of(changed)].update(seen(changed))
    return changed


async def add(connection: AsyncConnection, numbers: Numbers) -> None:
    """Add to the roll-up: once in a transaction and in the same order everywhere, or two wait for each other."""
    rows = [
        {**dict(zip(KEY, key, strict=True)), **{name: numbers[key][name] for name in (*SEEN, *MADE)}}
        for key in sorted(numbers)
    ]
    if not rows:
        return
    await connection.execute(adding(connection.dialect.name), rows)
    for key in sorted(key for key, number in numbers.items() if number.get("requests", 1) <= 0):  # they moved
        is_it = [getattr(UsageDay, name) == value for name, value in zip(KEY, key, strict=True)]
        await connection.execute(delete(UsageDay).where(*is_it, UsageDay.requests == 0))


@cache
def joining() -> Executable:
    """Return the statement that joins the receipts of `request_ids`; to make it takes longer than to run it."""
    among = ReceiptRow.request_id.in_(bindparam("request_ids", expanding=True))
    has_row = exists().where(Usage.request_id == ReceiptRow.request_id)
    its_row = select(func.max(Usage.id)).where(Usage.request_id == ReceiptRow.request_id).scalar_subquery()
    own = select(ReceiptRow.id).where(ReceiptRow.usage_id.is_(None), among, has_row).with_for_update(skip_locked=True)
    statement = update(ReceiptRow).where(ReceiptRow.id.in_(own)).values(usage_id=its_row)
    return statement.returning(ReceiptRow.usage_id, ReceiptRow.model, ReceiptRow.modality, *SAID)


@cache
def adding(dialect: str) -> Executable:
    """Return the statement that adds to the roll-up; likewise."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(UsageDay)
    sums = {name: getattr(UsageDay, name) + statement.excluded[name] for name in (*SEEN, *MADE)}
    return statement.on_conflict_do_update(index_elements=KEY, set_=sums)


def key_of(row: Record | AnyRow) -> Key:
    """Where in the roll-up a request is counted."""
    return row.started_at.astimezone(UTC).date(), row.caller, row.owner, row.model, row.modality


def seen(row: Record | AnyRow) -> dict[str, Any]:
    """What one request adds to the roll-up."""
    return {
        "requests": 1,
        "failures": int(not row.successful),
        "bytes_out": row.bytes_out,
        "response_seconds": row.response_seconds,
    }
