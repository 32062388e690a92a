"""The database on a Postgres that gateways share."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.database.database import POSTGRES_LOCK, VERSION_TABLE, open_database
from gateway.database.types import Tables
from gateway.usage.log import UsageLog
from gateway.usage.summary import Bucket, Question, Width
from gateway.usage.writer import Writer
from tests.gateway.conftest import Gateway
from tests.gateway.servers import LONG, postgres_server
from tests.gateway.test_receipts import receipt
from tests.gateway.test_usage import make_record

WAITING = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


@pytest.fixture
def url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def test_a_gateway_waits_while_another_makes_the_tables(url: str) -> None:
    async def tables() -> set[str]:
        async with open_database(url) as database, database.connect() as connection:
            return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))

    async def second() -> set[str]:
        first = create_async_engine(url)
        async with first.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
            waits = asyncio.create_task(tables())
            while not await connection.scalar(WAITING):
                assert not waits.done()
        await first.dispose()
        return await waits

    assert asyncio.run(second()) == {*Tables.metadata.tables, VERSION_TABLE}


def test_a_second_user_acts_as_the_first(url: str) -> None:
    """So that its password may follow the first one's, and migrations still own what they change."""

    async def owners() -> set[str]:
        first = create_async_engine(url)
        async with first.begin() as connection:
            await connection.execute(text("CREATE ROLE second LOGIN PASSWORD 'another' IN ROLE atelier"))
            await connection.execute(text("ALTER ROLE second SET role = atelier"))
        await first.dispose()
        second = make_url(url).set(username="second", password="another")  # noqa: S106 - the server asks for none
        of_second = second.render_as_string(hide_password=False)
        async with open_database(of_second) as database, database.connect() as connection:
            assert await connection.scalar(text("SELECT session_user")) == "second"
            found = await connection.scalars(text("SELECT tableowner FROM pg_tables WHERE schemaname = 'public'"))
            return set(found)

    assert asyncio.run(owners()) == {"atelier"}


def test_hours_say_what_their_day_does(url: str) -> None:
    """They are added up from the rows, in the database's own numbers; the day is from the roll-up."""
    began = datetime(2026, 6, 29, 12, 30, tzinfo=UTC)

    async def totals(width: Width) -> list[Bucket]:
        async with open_database(url) as database, UsageLog.open(database) as log:
            if width == "1d":
                log.put(make_record(1, started_at=began))
                await log.take([receipt("req-1", units={"audio_seconds": 2.5})])
                await log.flush()
                return await log.summarize(Question(since=began.date(), until=date(2026, 6, 30)), width, 1)
            hour = began.replace(minute=0)
            return await log.summarize(Question(since=hour, until=hour + timedelta(hours=2)), width, 2)

    [day] = asyncio.run(totals("1d"))
    first, second = asyncio.run(totals("1h"))
    assert (first.results, second.results) == (day.results, [])
    assert day.results[0].units == {"audio_seconds": 2.5}


def test_rows_it_refuses_do_not_hold_up_the_others(url: str) -> None:
    async def written() -> tuple[list[int], int]:
        found: list[int] = []

        async def write(numbers: Sequence[int]) -> None:
            async with database.begin() as connection:
                found.extend(await connection.scalars(text(f"SELECT 1 / {numbers[0]}")))

        database = create_async_engine(url)
        async with Writer(write, close_seconds=5) as writer:
            for number in (0, 1):
                writer.put(number)
                async with asyncio.timeout(LONG):
                    await writer.flush()
        await database.dispose()
        return found, writer.dropped

    assert asyncio.run(written()) == ([1], 1)


def test_what_it_cannot_store_is_not_there(url: str, start: Callable[..., Gateway]) -> None:
    gateway = start(database_url=url)
    for path in ("/v1/jobs/%00", "/v1/videos/%00", "/v1/3d/%00/content", "/v1/keys/%00"):
        assert gateway.client.get(path).status_code == 404
    assert gateway.client.get("/v1/videos?after=%00").status_code == 404
    assert gateway.client.get("/v1/usage/summary?caller=%00&model=%00").status_code == 200
    gateway.close()
