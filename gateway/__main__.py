"""`python -m gateway`: serve on `ATELIER_HOST` and `ATELIER_PORT`."""

import logging
from contextlib import suppress

from gateway.app import create_app
from gateway.server import Server
from gateway.settings import Settings


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each probe helps nobody
    settings = Settings()
    with suppress(KeyboardInterrupt):  # raised again by the server, once it is down
        Server(create_app(settings), settings.host, settings.port).run()


if __name__ == "__main__":
    main()
