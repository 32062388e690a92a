"""`python -m gateway`: serve on `ATELIER_HOST` and `ATELIER_PORT`."""

import asyncio
import ctypes
import logging
import sys
from contextlib import suppress

if __name__ == "__main__":
    sys.modules["pygments"] = None  # type: ignore[assignment] # httpx's command line and Mako would load it: 7 MB

from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import SQLAlchemyError

from gateway.app import create_app
from gateway.database.database import open_database
from gateway.errors import Misconfigured
from gateway.keys.first import check_keys
from gateway.server import Server
from gateway.settings import Settings
from services.logs import LogFormat, write_logs
from services.secret_files import NoFolder

M_ARENA_MAX = -8  # of glibc's mallopt


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    use_one_arena()
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        sys.exit(f"atelier: ATELIER_{'_'.join(map(str, first['loc'])).upper()}: {first['msg']}")
    except NoFolder as error:
        sys.exit(f"atelier: {error}")
    except SettingsError as error:  # what should be JSON and is not
        sys.exit(f"atelier: {error}: it must be JSON, in the environment variable of that name")
    show_logs(settings.log_format)
    try:
        app = create_app(settings)
        asyncio.run(check(settings))
    except Misconfigured as error:
        sys.exit(f"atelier: {error}")
    with suppress(KeyboardInterrupt):  # raised again by the server, once it is down
        Server(app, settings.host, settings.port).run()


def use_one_arena() -> None:
    """Let the database's threads share their memory: glibc would give each a heap of its own, which only grows."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_ARENA_MAX, 1)


def show_logs(form: LogFormat) -> None:
    """Write all log lines, the server's too, to the standard error stream in one form."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each probe helps nobody, and URLs hold prompts
    write_logs(logging.getLogger().handlers, form)


async def check(settings: Settings) -> None:
    """Refuse in a sentence what would be refused with a traceback while the server starts.

    Raises:
        Misconfigured: so it is.
    """
    try:
        async with open_database(settings.database) as database:
            await check_keys(database, settings.admin_key_file, is_loopback=settings.is_loopback)
    except (SQLAlchemyError, OSError, ImportError) as error:  # ImportError: of a driver
        words = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise Misconfigured(f"ATELIER_DATABASE_URL: the database cannot be opened: {words}") from error


if __name__ == "__main__":
    main()
