"""`python -m gateway.database VERSION`: take the tables back for an older gateway; none may be running meanwhile."""

import asyncio
import sys

from gateway.database.database import NEWEST, VERSION_TABLE, connected, lock
from gateway.database.migrate import migrate
from gateway.settings import Settings


async def main(settings: Settings, version: str) -> None:
    """Do it, and drop what only newer versions know."""
    async with connected(settings.database) as engine, engine.begin() as connection:
        await lock(connection)
        await migrate(connection, VERSION_TABLE, version)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not ("0001" <= sys.argv[1] <= NEWEST and len(sys.argv[1]) == len(NEWEST)):
        sys.exit(f"usage: python -m gateway.database VERSION, from 0001 to {NEWEST}: as the older gateway names it")
    asyncio.run(main(Settings(), sys.argv[1]))
