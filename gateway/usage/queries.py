"""Reads the usage log newest first, a page at a time, so that its length costs no memory; knows no HTTP."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, tuple_
from sqlalchemy import Row as Selected
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.errors import NoSuchPlace
from gateway.usage.schema import Entry, ReceiptRow, Row, Usage, units_of
from services.schema import UNITS

COLUMNS = [getattr(Usage, field.name) for field in fields(Row)]
SECONDS = ("queue_seconds", "run_seconds")


@dataclass(frozen=True)
class Window:
    """The part of the log to read.

    Args:
        since: the earliest start of a request, itself included.
        until: the end of the time, itself not included.
        after: the id of an entry; only what comes after it, newest first, is read.
        caller: whose requests; None: everybody's.
        modalities: of what; empty: of everything, and what no model works on.
    """

    since: datetime | None = None
    until: datetime | None = None
    after: int | None = None
    caller: str | None = None
    modalities: Sequence[str] = ()


async def page(engine: AsyncEngine, window: Window, num_rows: int) -> list[Entry]:
    """Return the newest entries of the window.

    Raises:
        NoSuchPlace: there is no entry `after`.
    """
    async with engine.connect() as connection:
        rows = (await connection.execute(_newest_first(window).limit(num_rows))).all()
        known = select(Usage.id).where(Usage.id == window.after)
        if window.after is not None and not rows and await connection.scalar(known) is None:
            raise NoSuchPlace(window.after)
        said = await _receipts_of(connection, [row.id for row in rows])
    return [_entry(row, said.get(row.id)) for row in rows]


async def pages(
    engine: AsyncEngine, window: Window, num_rows: int | None = None, *, page_rows: int = 200
) -> AsyncGenerator[list[Entry]]:
    """Yield the newest entries of the window in pages; between two pages no connection and no snapshot is held.

    Args:
        engine: of the database.
        window: what to read; rows that are written meanwhile may or may not come.
        num_rows: entries at most; all where None.
        page_rows: entries in a page at most.

    Raises:
        NoSuchPlace: there is no entry `after`.
    """
    num_left, begun = num_rows, False
    while num_left is None or num_left > 0:
        num_wanted = page_rows if num_left is None else min(page_rows, num_left)
        try:
            entries = await page(engine, window, num_wanted)
        except NoSuchPlace:
            if begun:
                return  # what was read last has been deleted meanwhile, as it was too old, and so has all behind it
            raise
        begun = True
        if entries:
            yield entries
        if len(entries) < num_wanted:
            return
        window = replace(window, after=entries[-1].id)
        num_left = None if num_left is None else num_left - num_wanted


async def _receipts_of(connection: AsyncConnection, ids: Sequence[int]) -> dict[int, Selected[Any]]:
    """Add up what the receipts of each row say."""
    sums = [func.sum(getattr(ReceiptRow, name)).label(name) for name in (*SECONDS, *UNITS)]
    statement = select(ReceiptRow.usage_id, *sums).where(ReceiptRow.usage_id.in_(ids)).group_by(ReceiptRow.usage_id)
    return {row.usage_id: row for row in await connection.execute(statement)}


def _entry(row: Selected[Any], said: Selected[Any] | None) -> Entry:
    return Entry(
        **row._mapping,
        units=units_of(said._asdict()) if said is not None else {},
        queue_seconds=said.queue_seconds if said is not None else None,
        run_seconds=said.run_seconds if said is not None else None,
    )


def _newest_first(window: Window) -> Select[*tuple[Any, ...]]:
    return select(*COLUMNS).where(*_conditions(window)).order_by(Usage.started_at.desc(), Usage.id.desc())


def _conditions(window: Window) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if window.since is not None:
        conditions.append(Usage.started_at >= window.since)
    if window.until is not None:
        conditions.append(Usage.started_at < window.until)
    if window.caller is not None:
        conditions.append(Usage.caller == window.caller)
    if window.modalities:
        conditions.append(Usage.modality.in_(window.modalities))
    if window.after is not None:
        started_at = select(Usage.started_at).where(Usage.id == window.after).scalar_subquery()
        conditions.append(tuple_(Usage.started_at, Usage.id) < tuple_(started_at, window.after))
    return conditions
