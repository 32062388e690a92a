"""`python -m gateway.database VERSION`: take the tables back for an older gateway; none may be running meanwhile."""

import asyncio
import sys

from gateway.database.database import NEWEST, VERSION_TABLE, connected, locked
from gateway.database.migrate import migrate
from gateway.errors import Misconfigured
from gateway.settings import Settings


async def main(settings: Settings, version: str) -> None:
    """Do it, and drop what only newer versions know.

    Raises:
        Misconfigured: it takes a newer version than this.
    """
    async with connected(settings.database) as engine, engine.begin() as connection:
        await locked(connection)
        await migrate(connection, VERSION_TABLE, version)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not ("0001" <= sys.argv[1] <= NEWEST and len(sys.argv[1]) == len(NEWEST)):
        sys.exit(f"usage: python -m gateway.database VERSION, from 0001 to {NEWEST}: as the older gateway names it")
    try:
        asyncio.run(main(Settings(), sys.argv[1]))
    except Misconfigured as error:
        sys.exit(f"atelier: {error}")
