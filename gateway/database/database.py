"""Opens the database and brings its tables up to date; knows none of them."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Connection, column, event, inspect, select, table
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from gateway.errors import Misconfigured

VERSION_TABLE = "atelier_version"  # not Alembic's default name, so that other tables may share the database
POSTGRES_LOCK = 0x61_74_65_6C_69_65_72  # any number that nobody else locks: "atelier"
NEWEST = max(path.stem[:4] for path in Path(__file__).with_name("migrations").glob("versions/[0-9]*.py"))


NUM_CONNECTIONS = 10  # that are kept; making one takes longer than most that is done with it
MORE_CONNECTIONS = 5


@asynccontextmanager
async def open_database(url: str, *, busy_seconds: float = 30) -> AsyncGenerator[AsyncEngine]:
    """Open the database, made and migrated where needed, and close it at the end.

    Args:
        url: SQLAlchemy's, with an asynchronous driver, such as `sqlite+aiosqlite:///var/atelier.sqlite3`.
        busy_seconds: how long SQLite waits for another connection's lock.

    Raises:
        Misconfigured: a newer version has made its tables.
    """
    async with connected(url, busy_seconds) as engine:
        await upgrade(engine, patience_seconds=busy_seconds)
        yield engine


@asynccontextmanager
async def connected(url: str, busy_seconds: float = 30) -> AsyncGenerator[AsyncEngine]:
    """Connect to the database as it is, and close it at the end."""
    engine = create_async_engine(
        url, hide_parameters=True, pool_size=NUM_CONNECTIONS, max_overflow=MORE_CONNECTIONS, pool_use_lifo=True
    )  # an error's text names no caller
    if engine.dialect.name == "sqlite":
        _make_folder(make_url(url))
        event.listen(engine.sync_engine, "connect", _SqlitePragmas(busy_seconds))
    try:
        yield engine
    finally:
        await engine.dispose()


def for_reading(engine: AsyncEngine) -> AsyncEngine:
    """The same connections, for single statements that only read: Postgres is spared a transaction around each."""
    is_postgres = engine.dialect.name == "postgresql"
    return engine.execution_options(isolation_level="AUTOCOMMIT") if is_postgres else engine


async def upgrade(engine: AsyncEngine, *, patience_seconds: float) -> None:
    """Bring the tables to their newest version, also while another gateway does the same.

    Args:
        engine: of the database.
        patience_seconds: how long to try again while SQLite is busy. It waits by itself for other locks, but not for
            the one that the switch to write-ahead logging of a new file needs.
    """
    loop = asyncio.get_running_loop()
    patient_until = loop.time() + patience_seconds
    while True:
        try:
            async with engine.begin() as connection:
                return await _upgrade(connection)
        except OperationalError as error:
            if not _is_busy(error) or loop.time() > patient_until:
                raise
        await asyncio.sleep(0.05)


async def _upgrade(connection: AsyncConnection) -> None:
    if await locked(connection) != NEWEST:
        from gateway.database.migrate import migrate  # 10 MB that most starts need not have

        await migrate(connection, VERSION_TABLE)


async def locked(connection: AsyncConnection) -> str | None:
    """Let nobody else change the tables until the transaction ends; return the last migration that they have seen.

    Raises:
        Misconfigured: we do not know it.
    """
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql("BEGIN IMMEDIATE")  # the second gateway waits here and then finds it done
    else:
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")  # likewise
    found = await connection.run_sync(_version)
    if found is not None and found > NEWEST:
        raise Misconfigured(
            f"ATELIER_DATABASE_URL: a newer version of Atelier has brought the database to {found}, and this one knows "
            f"it up to {NEWEST}: start the newer one, or have it go back (python -m gateway.database {NEWEST})"
        )
    return found


def _version(connection: Connection) -> str | None:
    """Return the last migration that the tables have seen; None: there are none yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    return found


class _SqlitePragmas:
    """Lets nobody wait for readers and no commit for the disk; losing power may cost the last rows, not the file."""

    def __init__(self, busy_seconds: float) -> None:
        self.statements = (
            f"PRAGMA busy_timeout = {round(busy_seconds * 1000)}",  # first: the others may have to wait
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = NORMAL",
            "PRAGMA cache_size = -512",  # KiB of each connection; the system has the file's pages too
        )

    def __call__(self, connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for statement in self.statements:
            cursor.execute(statement)
        cursor.close()


def _make_folder(url: URL) -> None:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)


def _is_busy(error: OperationalError) -> bool:
    return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
