"""URLs that operators name: refused at the start if nobody could ever be asked there."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from gateway.names import PREFIX


def check_url(value: str) -> str:
    """Refuse what is no URL of HTTP with a host, and a port where it names one."""
    try:
        parts = urlsplit(value)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of brackets
        is_url = False
    if not is_url or not value.isprintable() or " " in value:
        raise ValueError("must be an http or https URL, such as http://127.0.0.1:3001")
    return value


def check_worker_url(value: str) -> str:
    """Refuse what is no URL of a worker, nor of all that a name leads to (`gateway/names.py`)."""
    named = value.removeprefix(PREFIX)
    if named != value and urlsplit(named).scheme == "https":
        raise ValueError("dns+https is not served, as certificates are for names; write dns+http, or https alone")
    check_url(named)
    return value


HttpUrl = Annotated[str, AfterValidator(check_url)]
