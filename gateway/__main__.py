"""`python -m gateway`: serve on `ATELIER_HOST` and `ATELIER_PORT`."""

import asyncio
import logging
import sys

import uvicorn

from gateway.app import create_app
from gateway.database.database import open_database
from gateway.errors import Misconfigured
from gateway.keys.first import check_keys
from gateway.settings import Settings

STOP_SECONDS = 5  # a stream may last longer: it is cut then, and its usage row is still written


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each probe helps nobody
    settings = Settings()
    try:
        app = create_app(settings)
        asyncio.run(check(settings))
    except Misconfigured as error:
        sys.exit(f"atelier: {error}")
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=STOP_SECONDS,
        proxy_headers=False,  # nobody may choose the address in the usage log
        server_header=False,
        access_log=False,  # the usage log has it, without the prompts
    )


async def check(settings: Settings) -> None:
    """Refuse in a sentence what would be refused with a traceback while the server starts."""
    async with open_database(settings.database) as database:
        await check_keys(database, settings.admin_key_file, is_loopback=settings.is_loopback)


if __name__ == "__main__":
    main()
