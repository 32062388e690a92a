"""`python -m gateway.usage`: make the daily roll-up anew from the rows of the log; gateways may run meanwhile."""

import asyncio
from datetime import date

from gateway.database.database import open_database
from gateway.settings import Settings
from gateway.usage.housekeeping import oldest_day
from gateway.usage.rollup import recount_since


async def main(settings: Settings) -> None:
    """Do it for all days whose rows are kept; of earlier ones the roll-up is all that is left."""
    days = settings.usage_retention_days
    async with open_database(settings.database) as engine:
        await recount_since(engine, oldest_day(days) if days else date.min)


if __name__ == "__main__":
    asyncio.run(main(Settings()))
