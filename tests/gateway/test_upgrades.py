"""Versions of the database: who meets a newer one says so, the way back is there, and an older gateway may stay."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Connection, column, inspect, select, table, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.database.database import NEWEST, VERSION_TABLE, connected, open_database
from gateway.database.migrate import migrate
from gateway.errors import Misconfigured
from tests.gateway.servers import LONG, postgres_server

ROOT = Path(__file__).parents[2]
FROM = "0005"  # from here on an older gateway may go on beside a newer one
VERSIONS = [f"{number:04}" for number in range(int(FROM), int(NEWEST) + 1)]
VERSION = table(VERSION_TABLE, column("version_num"))
Columns = dict[tuple[str, str], bool]
"""Whether a row may be written that does not name the column."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'atelier.sqlite3'}"
    else:
        with postgres_server() as url:
            yield url


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[AsyncConnection]:
    async with connected(url) as engine, engine.begin() as connection:
        yield connection


def columns(connection: Connection) -> Columns:
    seen = inspect(connection)
    return {
        (table, column["name"]): bool(column["nullable"] or column["default"] or column.get("autoincrement") is True)
        for table in seen.get_table_names()
        for column in seen.get_columns(table)
    }


def python_m_gateway(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "", "ATELIER_DATABASE_URL": url, "ATELIER_PORT": "0"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3 * LONG, check=False
    )


def test_a_gateway_that_meets_a_newer_database_says_so(url: str) -> None:
    async def age() -> None:
        async with open_database(url):
            pass
        async with opened(url) as connection:
            await connection.execute(update(VERSION).values(version_num="9999"))

    async def reopen() -> None:
        async with open_database(url):
            raise AssertionError

    asyncio.run(age())
    with pytest.raises(Misconfigured):
        asyncio.run(reopen())
    done = python_m_gateway(url, "gateway")

    back = python_m_gateway(url, "gateway.database", "0007")

    assert (done.returncode, back.returncode) == (1, 1)
    assert back.stderr.startswith("atelier: ATELIER_DATABASE_URL: a newer version")
    [said] = [line for line in done.stderr.splitlines() if line.startswith("atelier: ")]
    assert f"a newer version of Atelier has brought the database to 9999, and this one knows it up to {NEWEST}" in said
    assert "Traceback" not in done.stderr


def test_the_newer_version_takes_the_database_back_and_forth(url: str) -> None:
    async def made() -> Columns:
        async with open_database(url) as engine, engine.connect() as connection:
            return await connection.run_sync(columns)

    async def seen() -> tuple[str | None, Columns]:
        async with opened(url) as connection:
            version = await connection.scalar(select(VERSION.c.version_num))
            return version, await connection.run_sync(columns)

    whole = asyncio.run(made())
    done = python_m_gateway(url, "gateway.database", "0007")
    assert done.returncode == 0, done.stderr
    version, before = asyncio.run(seen())

    assert version == "0007"
    assert ("jobs", "cancelled") in whole.keys() - before.keys()
    assert asyncio.run(made()) == whole
    assert python_m_gateway(url, "gateway.database", "9999").returncode == 1


def test_migrations_take_nothing_from_older_gateways(url: str) -> None:
    """One that runs while a newer one starts writes and reads by the columns it knows."""

    async def history() -> list[Columns]:
        found = []
        for version in VERSIONS:
            async with opened(url) as connection:
                await migrate(connection, VERSION_TABLE, version)
                found.append(await connection.run_sync(columns))
        return found

    versions = asyncio.run(history())
    for before, after in pairwise(versions):
        assert before.keys() <= after.keys()
        tables = {name for name, _ in before}
        added = {(name, each): may for (name, each), may in after.items() if (name, each) not in before}
        assert all(may for (name, _), may in added.items() if name in tables), added
