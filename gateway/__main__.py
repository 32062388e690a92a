"""`python -m gateway`: serve on `ATELIER_HOST` and `ATELIER_PORT`."""

import logging

import uvicorn

from gateway.app import create_app
from gateway.settings import Settings

STOP_SECONDS = 5  # a stream may last longer: it is cut then, and its usage row is still written


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each probe helps nobody
    settings = Settings()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=STOP_SECONDS,
        proxy_headers=False,  # nobody may choose the address in the usage log
        server_header=False,
        access_log=False,  # the usage log has it, without the prompts
    )


if __name__ == "__main__":
    main()
