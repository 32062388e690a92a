"""Moves amounts between what is free, reserved and spent; each move is one transaction, in any database.

A reservation is open, until the receipt that it awaits settles it, or its deadline: then all of it counts as spent.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import date, datetime
from typing import Any, Self

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.budgets.schema import Hold, Reservations, Spending, scaled
from gateway.callers import Counted

RELEASED = -1  # as an attempt: before the first
IS_OPEN = or_(
    Reservations.attempt.is_(None),
    and_(Reservations.attempt > RELEASED, Reservations.attempt < Reservations.awaits),
)
BATCH_ROWS = 100


class Spent(Exception):
    """A budget does not allow it."""

    def __init__(self, hold: Hold) -> None:
        """Name what was asked of it."""
        super().__init__(hold.period, hold.unit)
        self.hold = hold


async def reserve(
    database: AsyncEngine,
    request_id: str,
    key_id: str,
    limits: Mapping[Hold, int],
    *,
    price: float,
    expires_at: datetime,
) -> None:
    """Reserve all, or nothing.

    Args:
        database: with the tables.
        request_id: what the receipt will name.
        key_id: whose budgets.
        limits: what is needed of each budget, and the budget; scaled.
        price: of a unit.
        expires_at: when all of it counts as spent.

    Raises:
        Spent: a budget does not allow it.
        IntegrityError: a request of that id has reserved already.
    """
    row = {
        "request_id": request_id,
        "key_id": key_id,
        "holds": sorted(map(astuple, limits)),
        "price": price,
        "expires_at": expires_at,
    }
    async with database.begin() as connection:
        await connection.execute(insert(Reservations).values(row))
        await _reserve_all(connection, key_id, limits)


async def keep(
    database: AsyncEngine, request_id: str, key_id: str, limits: Mapping[Hold, int], *, attempt: int
) -> None:
    """Keep what is reserved for a later attempt, whatever receipts of earlier ones say, or reserve anew what one freed.

    Raises:
        Spent: somebody else has taken it meanwhile.
    """
    async with database.begin() as connection:
        awaits = {"awaits": attempt}
        if await _note(connection, request_id, awaits, IS_OPEN) is None:
            is_settled = Reservations.attempt < attempt
            if await _note(connection, request_id, awaits, is_settled) is not None:
                await _reserve_all(connection, key_id, limits)


async def settle(
    database: AsyncEngine, request_id: str, attempt: int, units: float, price: float | None = None
) -> bool:
    """Count what was really made; whether that was news.

    The same receipt may come twice. One of a later attempt adds to what is settled. Whether it is more than was
    reserved is not asked: it has been made. `price` is that of a unit, where it is not the reservation's.
    """
    async with database.begin() as connection:
        return await settle_in(connection, request_id, attempt, units, price)


async def settle_in(
    connection: AsyncConnection, request_id: str, attempt: int, units: float, price: float | None = None
) -> bool:
    """The same in a transaction that there is already."""
    if units < 0:
        raise ValueError("nobody makes less than nothing")
    noted = {"attempt": attempt}
    is_later = or_(Reservations.attempt.is_(None), Reservations.attempt < attempt)
    first = await _note(connection, request_id, noted, IS_OPEN, Reservations.awaits <= attempt)
    row = first or await _note(connection, request_id, noted, is_later)
    if row is None:
        return False
    for hold in row.holds:
        amount = units * (row.price if price is None else price) if hold.unit == "money" else units
        await _move(connection, row.key_id, hold, scaled(hold.unit, amount), freed=hold.need if first else 0)
    return True


async def reserved(database: AsyncEngine, request_ids: Collection[str]) -> set[str]:
    """Which of these requests have reserved, and are not forgotten yet."""
    among = select(Reservations.request_id).where(Reservations.request_id.in_(request_ids))
    async with database.connect() as connection:
        return set(await connection.scalars(among))


async def release(database: AsyncEngine, request_id: str) -> bool:
    """Give back what no receipt has settled yet; one that comes later counts."""
    async with database.begin() as connection:
        return await release_in(connection, request_id)


async def release_in(connection: AsyncConnection, request_id: str) -> bool:
    """The same in a transaction that there is already."""
    noted = {"attempt": func.coalesce(Reservations.attempt, RELEASED), "awaits": RELEASED}
    row = await _note(connection, request_id, noted, IS_OPEN)
    if row is None:
        return False
    for hold in row.holds:
        await _move(connection, row.key_id, hold, 0, freed=hold.need)
    return True


async def expire(database: AsyncEngine, now: datetime) -> int:
    """Count as spent what is reserved beyond its deadline, and forget what is settled; how many rows there were."""
    is_late = Reservations.expires_at < now
    async with database.connect() as connection:
        late = (await connection.scalars(select(Reservations.request_id).where(is_late).limit(BATCH_ROWS))).all()
    for request_id in late:
        async with database.begin() as connection:
            gone = delete(Reservations).where(Reservations.request_id == request_id, is_late).returning(*COLUMNS)
            rows = [_Reservation.of(*row) for row in await connection.execute(gone)]
            for row in rows:
                for hold in row.holds if row.is_open else ():
                    await _move(connection, row.key_id, hold, hold.need, freed=hold.need)
    return len(late)


async def forget(database: AsyncEngine, day: date) -> None:
    """Delete what was spent in days and months that had ended before `day`; `2026-09` sorts before all its days."""
    async with database.begin() as connection:
        await connection.execute(delete(Spending).where(Spending.period < day.isoformat(), Spending.reserved == 0))


async def spending(database: AsyncEngine, key_id: str, periods: Iterable[str]) -> dict[tuple[str, Counted], int]:
    """What the key has spent and reserved, by period and unit; scaled."""
    taken = select(Spending.period, Spending.unit, Spending.spent + Spending.reserved)
    async with database.connect() as connection:
        rows = await connection.execute(taken.where(Spending.key_id == key_id, Spending.period.in_(periods)))
        return {(period, unit): amount for period, unit, amount in rows}


@dataclass(frozen=True)
class _Reservation:
    """A row as a statement returns it."""

    key_id: str
    holds: Sequence[Hold]
    price: float
    is_open: bool

    @classmethod
    def of(cls, key_id: str, holds: list[Any], price: float, attempt: int | None, awaits: int) -> Self:
        is_open = attempt is None or RELEASED < attempt < awaits
        return cls(key_id, [Hold(*hold) for hold in holds], price, is_open)


COLUMNS = (Reservations.key_id, Reservations.holds, Reservations.price, Reservations.attempt, Reservations.awaits)


async def _reserve_all(connection: AsyncConnection, key_id: str, limits: Mapping[Hold, int]) -> None:
    for hold in sorted(limits, key=astuple):  # all in the same order, so that no two wait for each other
        if not await _fits(connection, key_id, hold, limits[hold]):
            raise Spent(hold)


async def _fits(connection: AsyncConnection, key_id: str, hold: Hold, limit: int) -> bool:
    """Reserve what is needed of one budget, if it allows it."""
    total = Spending.spent + Spending.reserved + hold.need
    raised = update(Spending).where(*_is(key_id, hold), total <= limit).values(reserved=Spending.reserved + hold.need)
    if (await connection.execute(raised)).rowcount:
        return True
    nothing = {"key_id": key_id, "period": hold.period, "unit": hold.unit, "spent": 0, "reserved": 0}
    if connection.dialect.name == "postgresql":
        await connection.execute(postgresql.insert(Spending).values(nothing).on_conflict_do_nothing())
    else:
        await connection.execute(sqlite.insert(Spending).values(nothing).on_conflict_do_nothing())
    return bool((await connection.execute(raised)).rowcount)


async def _note(
    connection: AsyncConnection, request_id: str, values: Mapping[str, Any], *conditions: ColumnElement[bool]
) -> _Reservation | None:
    """Write into a reservation, if the conditions hold; the reservation then."""
    noted = update(Reservations).where(Reservations.request_id == request_id, *conditions).values(values)
    row = (await connection.execute(noted.returning(*COLUMNS))).one_or_none()
    return None if row is None else _Reservation.of(*row)


async def _move(connection: AsyncConnection, key_id: str, hold: Hold, amount: int, *, freed: int) -> None:
    """Count `amount` as spent, and free what was reserved."""
    values = {"spent": Spending.spent + amount, "reserved": Spending.reserved - freed}
    await connection.execute(update(Spending).where(*_is(key_id, hold)).values(values))


def _is(key_id: str, hold: Hold) -> tuple[ColumnElement[bool], ...]:
    return Spending.key_id == key_id, Spending.period == hold.period, Spending.unit == hold.unit
