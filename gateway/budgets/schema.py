"""What is counted and in which periods, and the tables of it; knows no HTTP and no key's limits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

from sqlalchemy import JSON, BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from gateway.callers import Counted, Period
from gateway.database.types import Tables, UtcDateTime

# Whole numbers add up exactly, whatever the order: seconds are kept in ms, money in millionths.
SCALES: Final[Mapping[str, int]] = MappingProxyType({"audio_seconds": 1000, "money": 1_000_000})
MAX_AMOUNT: Final = 10**18  # scaled; what a database adds up without overflow


def scaled(unit: Counted, amount: float) -> int:
    """Return an amount as it is kept, rounded up."""
    return min(MAX_AMOUNT, math.ceil(amount * SCALES.get(unit, 1) - 1e-6))  # 0.1 + 0.2 is no more than 0.3


def name_of(period: Period, now: datetime) -> str:
    """Return the day or the month in UTC, such as `2026-11-23` or `2026-11`."""
    return now.astimezone(UTC).strftime("%Y-%m-%d" if period == "day" else "%Y-%m")


def seconds_left(period: Period, now: datetime) -> int:
    """Seconds until the next day or month begins."""
    now = now.astimezone(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow = today + timedelta(days=1)
    end = tomorrow if period == "day" else (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    return math.ceil((end - now).total_seconds())


@dataclass(frozen=True)
class Hold:
    """What a request may use of one budget at most.

    Args:
        period: its name.
        unit: in what.
        need: scaled.
    """

    period: str
    unit: Counted
    need: int


class Spending(Tables):
    """What a key has spent in a period, and what its requests under way have reserved; scaled."""

    __tablename__ = "spending"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    period: Mapped[str] = mapped_column(String(10), primary_key=True)
    unit: Mapped[Counted] = mapped_column(String(16), primary_key=True)
    spent: Mapped[int] = mapped_column(BigInteger)
    reserved: Mapped[int] = mapped_column(BigInteger)


class Reservations(Tables):
    """One row a request that has reserved, until its deadline has passed.

    `attempt` is that of the last receipt, None while there is none; one of an attempt before `awaits` settles nothing.
    `holds` are lists of what `Hold` has.
    """

    __tablename__ = "reservations"

    request_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(16))
    holds: Mapped[list[list[str | int]]] = mapped_column(JSON)
    price: Mapped[float]
    attempt: Mapped[int | None]
    awaits: Mapped[int] = mapped_column(server_default="0")
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
