"""The database on a Postgres that gateways share."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.database.database import POSTGRES_LOCK, VERSION_TABLE, open_database
from gateway.database.types import Tables
from tests.gateway.servers import postgres_server

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
