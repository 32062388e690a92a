"""Budgets hold, whatever comes when: on SQLite and on Postgres."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.budgets import ledger
from gateway.budgets.budgets import Budgets, Made
from gateway.budgets.ledger import Spent
from gateway.budgets.schema import Hold, Reservations, Spending, name_of, scaled, seconds_left
from gateway.database.database import VERSION_TABLE, open_database
from gateway.database.types import Tables
from tests.gateway.servers import postgres_server

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
FUTURE = NOW + timedelta(days=100)
LIMIT = 100
KEYS = count()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One database for all examples: each has a key of its own."""
    folder: Path = tmp_path_factory.mktemp("database")
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{folder}/atelier.sqlite3"
    else:
        with postgres_server() as url:
            yield url


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def database(url: str, runner: asyncio.Runner) -> Iterator[AsyncEngine]:
    opened = open_database(url)
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))


async def reserve(database: AsyncEngine, request_id: str, key_id: str, need: int, expires_at: datetime = LATER) -> bool:
    """Reserve of a day's and a month's budget; the month's is half as much again."""
    limits = {Hold("2026-11-23", "tokens", need): LIMIT, Hold("2026-11", "tokens", need): LIMIT * 3 // 2}
    try:
        await ledger.reserve(database, request_id, key_id, limits, price=0.0, expires_at=expires_at)
    except Spent:
        return False
    return True


async def state(database: AsyncEngine, key_id: str) -> list[tuple[int, int]]:
    """What is spent and reserved, of the month and of the day."""
    query = select(Spending.spent, Spending.reserved).where(Spending.key_id == key_id).order_by(Spending.period)
    async with database.connect() as connection:
        return [(spent, reserved) for spent, reserved in await connection.execute(query)]


class Book:
    """What ought to be in the database."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.spent = 0
        self.open: dict[str, int] = {}  # what is reserved, by request
        self.closed: dict[str, int] = {}  # the last attempt, by request


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "again", "release", "expire"]), st.integers(0, 60), st.integers(0, 9)
    ),
    max_size=25,
)


async def follow(database: AsyncEngine, steps: list[Step]) -> None:
    """Do the steps, and compare with the book after each."""
    key_id = f"key-{next(KEYS)}"
    book = Book(key_id)
    for number, (what, amount, which) in enumerate(steps):
        chosen = [*book.open, *book.closed][which % max(1, len(book.open) + len(book.closed)) :][:1]
        if what == "reserve":
            total = book.spent + sum(book.open.values())
            expected = total + amount <= LIMIT
            assert await reserve(database, f"{key_id}-{number}", key_id, amount) is expected
            if expected:
                book.open[f"{key_id}-{number}"] = amount
        for request_id in chosen if what in ("settle", "again") else ():
            attempt = 0 if what == "settle" else 1
            need = book.open.pop(request_id, None)
            made = min(amount, need) if need is not None else amount % 3
            news = need is not None or book.closed[request_id] < attempt
            assert await ledger.settle(database, request_id, attempt, made) is news
            if news:
                book.spent += made
                book.closed[request_id] = attempt
        for request_id in chosen if what == "release" else ():
            assert await ledger.release(database, request_id) is (request_id in book.open)
            if book.open.pop(request_id, None) is not None:
                book.closed[request_id] = -1
        if what == "expire":
            await ledger.expire(database, LATER + timedelta(seconds=1))
            book.spent += sum(book.open.values())
            book.open, book.closed = {}, {}
        rows = await state(database, key_id)
        assert set(rows) <= {(book.spent, sum(book.open.values()))}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_one_after_the_other_nothing_is_lost_and_nothing_made_up(
    database: AsyncEngine, runner: asyncio.Runner, steps: list[Step]
) -> None:
    runner.run(follow(database, steps))


@dataclass(frozen=True)
class Life:
    """What becomes of a request: what it needs, and what is made; None: it releases, or no receipt comes."""

    need: int
    made: int | None
    is_released: bool
    num_receipts: int


LIVES = st.lists(st.builds(Life, st.integers(0, 60), st.none() | st.integers(0, 60), st.booleans(), st.integers(1, 3)))


async def live(database: AsyncEngine, lives: list[Life]) -> None:
    """All at once, as many gateways would."""
    key_id = f"key-{next(KEYS)}"
    totals: list[int] = []

    async def one(number: int, life: Life) -> int:
        """Return what must have been spent of it in the end."""
        request_id = f"{key_id}-{number}"
        if not await reserve(database, request_id, key_id, life.need):
            return 0
        totals.extend(spent + reserved for spent, reserved in (await state(database, key_id))[-1:])
        if life.made is None:
            return 0 if life.is_released and await ledger.release(database, request_id) else life.need
        made = min(life.made, life.need)
        receipts = (ledger.settle(database, request_id, 0, made) for _ in range(life.num_receipts))
        assert sum(await asyncio.gather(*receipts)) == 1
        return made

    spent = sum(await asyncio.gather(*(one(number, life) for number, life in enumerate(lives))))
    await asyncio.gather(*(ledger.expire(database, LATER + timedelta(seconds=1)) for _ in range(2)))
    await ledger.expire(database, LATER + timedelta(seconds=1))
    assert all(total <= LIMIT for total in totals)
    assert set(await state(database, key_id)) <= {(spent, 0)}
    assert spent <= LIMIT


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=LIVES)
def test_all_at_once_no_budget_is_overdrawn_and_nothing_stays_reserved(
    database: AsyncEngine, runner: asyncio.Runner, lives: list[Life]
) -> None:
    runner.run(live(database, lives))


def test_migrations_build_what_the_schema_says(database: AsyncEngine, runner: asyncio.Runner) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return list(compare_metadata(context, Tables.metadata))

    async def compare() -> list[Any]:
        async with database.connect() as connection:
            return await connection.run_sync(differences)

    assert runner.run(compare()) == []


def test_exactly_as_many_come_through_as_fit(database: AsyncEngine, runner: asyncio.Runner) -> None:
    async def rush() -> list[bool]:
        return await asyncio.gather(*(reserve(database, f"rush-{number}", "rush", 7) for number in range(40)))

    assert sum(runner.run(rush())) == LIMIT // 7


def test_a_request_id_reserves_once(database: AsyncEngine, runner: asyncio.Runner) -> None:
    assert runner.run(reserve(database, "twice", "ada", 1))
    with pytest.raises(IntegrityError):
        runner.run(reserve(database, "twice", "ada", 1))
    assert runner.run(state(database, "ada")) == [(0, 1), (0, 1)]


def test_refused_leaves_nothing_behind(database: AsyncEngine, runner: asyncio.Runner) -> None:
    """Not even in the budget that would have allowed it."""
    assert runner.run(reserve(database, "much", "bob", LIMIT + 1)) is False
    assert runner.run(state(database, "bob")) == []
    assert runner.run(ledger.settle(database, "much", 0, 5)) is False


def test_more_than_was_reserved_counts_too(database: AsyncEngine, runner: asyncio.Runner) -> None:
    runner.run(reserve(database, "long", "eve", 10))
    runner.run(ledger.settle(database, "long", 0, LIMIT + 1))
    assert runner.run(state(database, "eve")) == [(LIMIT + 1, 0)] * 2
    assert runner.run(reserve(database, "more", "eve", 0)) is False


def test_a_receipt_after_the_release_counts(database: AsyncEngine, runner: asyncio.Runner) -> None:
    runner.run(reserve(database, "odd", "kim", 10))
    assert runner.run(ledger.release(database, "odd"))
    assert runner.run(ledger.settle(database, "odd", 0, 4))
    assert runner.run(ledger.release(database, "odd")) is False
    assert runner.run(state(database, "kim")) == [(4, 0)] * 2


class TestFallback:
    """The hold is kept for the attempt that is made now, and what the one before says only adds."""

    LIMITS: Mapping[Hold, int] = {Hold("2026-11-23", "tokens", 60): LIMIT, Hold("2026-11", "tokens", 60): 150}

    async def falls_back(self, database: AsyncEngine, key_id: str, *, made: int, is_told_first: bool) -> None:
        """Reserve; the first attempt makes something or nothing, and the second begins."""
        assert await reserve(database, key_id, key_id, 60)
        for is_told in (True, False):
            if is_told is is_told_first:
                assert await ledger.settle(database, key_id, 1, made)
            else:
                await ledger.keep(database, key_id, key_id, self.LIMITS, attempt=2)
        assert await ledger.settle(database, key_id, 1, made) is False

    @pytest.mark.parametrize("is_told_first", [True, False])
    @pytest.mark.parametrize("made", [0, 3])
    def test_a_receipt_of_the_first_attempt_frees_nothing(
        self, database: AsyncEngine, runner: asyncio.Runner, made: int, is_told_first: bool
    ) -> None:
        async def all_endings() -> None:
            for ending in ("settled", "released", "expired"):
                key_id = f"{ending}-{made}-{is_told_first}"
                await self.falls_back(database, key_id, made=made, is_told_first=is_told_first)
                assert await state(database, key_id) == [(made, 60)] * 2
                assert await reserve(database, f"{key_id}-other", key_id, 50) is False
                match ending:
                    case "settled":
                        assert await ledger.settle(database, key_id, 2, 7)
                        assert await state(database, key_id) == [(made + 7, 0)] * 2
                    case "released":
                        assert await ledger.release(database, key_id)
                        assert await ledger.settle(database, key_id, 1, made) is False
                        assert await state(database, key_id) == [(made, 0)] * 2
                    case "expired":
                        await ledger.expire(database, LATER + timedelta(seconds=1))
                        assert await state(database, key_id) == [(made + 60, 0)] * 2

        runner.run(all_endings())

    def test_nobody_goes_on_without_a_budget(self, database: AsyncEngine, runner: asyncio.Runner) -> None:
        async def somebody_else_takes_it() -> None:
            assert await reserve(database, "gone", "ivy", 60)
            assert await ledger.settle(database, "gone", 1, 0)
            assert await reserve(database, "quick", "ivy", 50)
            with pytest.raises(Spent):
                await ledger.keep(database, "gone", "ivy", self.LIMITS, attempt=2)

        runner.run(somebody_else_takes_it())
        assert runner.run(state(database, "ivy")) == [(0, 50)] * 2


def test_an_id_may_be_as_long_as_callers_make_it(database: AsyncEngine, runner: asyncio.Runner) -> None:
    """64 characters of theirs, 17 of ours, and the number of a job's step."""
    assert runner.run(reserve(database, "x" * 85, "max", 1))


def test_receipts_come_together_also_for_requests_without_budgets(
    database: AsyncEngine, runner: asyncio.Runner
) -> None:
    async def settle() -> None:
        for number in range(3):
            assert await reserve(database, f"batch-{number}", "ben", 10)
        made = [Made(request_id, 1, 2) for request_id in ("free-0", "batch-0", "free-1", "batch-2", "batch-0")]
        await Budgets(database, 1).settle(*made)
        await Budgets(database, 1).settle()

    runner.run(settle())
    assert runner.run(state(database, "ben")) == [(4, 10)] * 2


def test_what_has_expired_is_forgotten(database: AsyncEngine, runner: asyncio.Runner) -> None:
    async def rows() -> int:
        while await ledger.expire(database, FUTURE):
            pass
        async with database.connect() as connection:
            return len((await connection.execute(select(Reservations))).all())

    runner.run(rows())
    for number in range(3):
        runner.run(reserve(database, f"old-{number}", "old", 1))
    runner.run(ledger.settle(database, "old-1", 0, 0))
    assert runner.run(rows()) == 0
    assert runner.run(state(database, "old")) == [(2, 0)] * 2


def test_money_is_what_was_made_times_the_price(database: AsyncEngine, runner: asyncio.Runner) -> None:
    limits = {Hold("2026-11", "money", 500): 1_000_000, Hold("2026-11", "audio_seconds", 9000): 10_000}
    runner.run(ledger.reserve(database, "paid", "lee", limits, price=0.00005, expires_at=LATER))
    runner.run(ledger.settle(database, "paid", 0, 2.5))
    assert runner.run(ledger.spending(database, "lee", ["2026-11"])) == {
        ("2026-11", "money"): 125,
        ("2026-11", "audio_seconds"): 2500,
    }


@pytest.mark.parametrize(
    ("now", "day", "month"),
    [("2026-11-23T12:00:00Z", 43_200, 43_200 + 7 * 86_400), ("2026-12-31T23:59:59+00:00", 1, 1)],
)
def test_periods_end_with_the_day_and_the_month(now: str, day: int, month: int) -> None:
    instant = datetime.fromisoformat(now)
    assert (seconds_left("day", instant), seconds_left("month", instant)) == (day, month)


def test_a_day_is_utcs() -> None:
    assert name_of("day", datetime.fromisoformat("2026-11-30T23:30:00-02:00")) == "2026-12-01"
    assert name_of("month", datetime.fromisoformat("2026-11-30T23:30:00-02:00")) == "2026-12"


def test_amounts_are_rounded_up_but_not_for_what_floats_add() -> None:
    assert scaled("money", 0.1 + 0.2) == 300_000
    assert scaled("money", 0.0000001) == 1
    assert scaled("tokens", 5) == 5


def test_what_was_spent_long_ago_is_forgotten(database: AsyncEngine, runner: asyncio.Runner) -> None:
    """Days and months; and not what is still reserved."""
    periods = ("2026-08", "2026-08-31", "2026-09", "2026-09-22", "2026-09-23", "2026-10", "2026-11-23", "2026-11")

    async def spend_and_forget() -> set[str]:
        for period in periods:
            limits = {Hold(period, "tokens", 1): LIMIT}
            await ledger.reserve(database, f"f-{period}", "forgetful", limits, price=0.0, expires_at=FUTURE)
            if period != "2026-08-31":
                await ledger.settle(database, f"f-{period}", 1, 1)
        await ledger.forget(database, date(2026, 9, 23))
        async with database.connect() as connection:
            return set(await connection.scalars(select(Spending.period).where(Spending.key_id == "forgetful")))

    left = runner.run(spend_and_forget())
    assert left == {"2026-08-31", "2026-09-23", "2026-10", "2026-11-23", "2026-11"}
