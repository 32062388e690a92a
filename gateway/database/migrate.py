"""Runs Alembic's migrations; loaded only where there are some to run."""

import asyncio
import threading

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

_alembic = threading.Lock()  # Alembic keeps the running migration in globals of the process


async def migrate(connection: AsyncConnection, version_table: str, target: str = "head") -> None:
    """Bring the tables to their newest version, or up or down to `target`."""
    while not _alembic.acquire(blocking=False):  # noqa: ASYNC110 (an event is of one loop, the lock of all threads)
        await asyncio.sleep(0.01)
    try:
        await connection.run_sync(_run, version_table, target)
    finally:
        _alembic.release()


def _run(connection: Connection, version_table: str, target: str) -> None:
    config = alembic_config(connection, version_table)
    found = MigrationContext.configure(connection, opts={"version_table": version_table}).get_current_revision()
    is_down = target != "head" and found is not None and target < found
    (command.downgrade if is_down else command.upgrade)(config, target)


def alembic_config(connection: Connection, version_table: str) -> Config:
    """Build the configuration that an `.ini` file holds elsewhere, for Alembic commands on this connection."""
    config = Config(attributes={"connection": connection, "version_table": version_table})
    config.set_main_option("script_location", "gateway.database:migrations")
    return config
