"""`python -m gateway`: serve on `ATELIER_HOST` and `ATELIER_PORT`."""

import logging
from contextlib import suppress

from gateway.app import create_app
from gateway.server import Server
from gateway.settings import Settings
from services.logs import LogFormat, write_json


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    settings = Settings()
    show_logs(settings.log_format)
    with suppress(KeyboardInterrupt):  # raised again by the server, once it is down
        Server(create_app(settings), settings.host, settings.port).run()


def show_logs(form: LogFormat) -> None:
    """Write all log lines, the server's too, to the standard error stream in one form."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each probe helps nobody, and URLs hold prompts
    if form == "json":
        write_json(logging.getLogger().handlers)


if __name__ == "__main__":
    main()
