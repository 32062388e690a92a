"""Asks the gateway for the commands, and says in a line what stands in the way."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import typer

from cli.errors import NoAnswer

Url = Annotated[str, typer.Option(envvar="ATELIER_URL", help="Where the gateway is.")]
Key = Annotated[str, typer.Option("--key", envvar="ATELIER_API_KEY", help="The key to send; a variable is safer.")]
KEY_VARIABLE = "ATELIER_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
PATIENCE = httpx.Timeout(10, read=None)  # seconds; a model takes as long as it takes


@dataclass(frozen=True)
class Server:
    """Whom to ask, and with which key; empty: with none."""

    url: str
    key: str = field(repr=False)


@contextmanager
def asked(method: str, server: Server | str, path: str, **options: Any) -> Iterator[httpx.Response]:
    """Ask; give the answer before its body is read. Of a bare URL, the key is in ATELIER_API_KEY, if there is one.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
    """
    url, key = (server.url, server.key) if isinstance(server, Server) else (server, os.environ.get(KEY_VARIABLE, ""))
    try:
        headers = {**key_header(key), **options.pop("headers", {})}
        with httpx.stream(method, f"{base_of(url)}{path}", headers=headers, **options) as response:
            check(response)
            yield response
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise no_answer(url, error) from error


def base_of(url: str) -> str:
    """The server's address, also where somebody gives it as the SDK takes it."""
    return url.rstrip("/").removesuffix("/v1")


def answer(method: str, server: Server | str, path: str, **options: Any) -> Any:
    """Ask, and return the JSON that is answered.

    Raises:
        NoAnswer: nothing answers, it says no, or it answers something else.
    """
    with asked(method, server, path, **options) as response:
        response.read()
        try:
            return response.json()
        except ValueError as error:
            raise no_answer(str(response.url.copy_with(query=None)), error) from error


def key_header(key: str) -> Mapping[str, str]:
    """The key as it is sent."""
    return {"authorization": f"Bearer {key.strip()}"} if key.strip() else {}


def check(response: httpx.Response) -> None:
    """Raise what the server says where it says no."""
    if response.is_success:
        return
    response.read()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    hint = "; ATELIER_API_KEY (or --key) holds the key that is sent" if response.status_code in (401, 403) else ""
    raise NoAnswer(f"{response.url.copy_with(query=None)} says {response.status_code}: {message}{hint}")


def no_answer(url: str, error: Exception) -> NoAnswer:
    """Say why nothing came of it."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NoAnswer(f"nothing answers at {url}; atelier up starts it, --url or ATELIER_URL name another place")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return NoAnswer(f"{url} is no http:// or https:// address")
    if isinstance(error, httpx.LocalProtocolError):
        return NoAnswer("what ATELIER_API_KEY (or --key) holds cannot be sent as a key")
    return NoAnswer(f"the answer of {url} broke off or is none ({type(error).__name__})")


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the rows, a line each, their columns under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
