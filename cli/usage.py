"""`atelier usage`: the gateway's usage log over HTTP, as a CSV file or as a table."""

import sys
from collections.abc import Mapping
from typing import Any

import httpx
import typer

from cli.errors import NoAnswer

COLUMNS = ("When (UTC)", "Status", "Seconds", "Client", "Endpoint")


def print_csv(url: str, window: Mapping[str, str]) -> None:
    """Write the CSV file to standard output as it comes.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
    """
    try:
        with httpx.stream("GET", f"{url}/v1/usage", params=window, headers={"accept": "text/csv"}) as response:
            _check(response)
            for chunk in response.iter_bytes():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    except httpx.HTTPError as error:
        raise _no_answer(url, error) from error


def print_table(url: str, window: Mapping[str, str]) -> None:
    """Print the newest requests, a line each.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    try:
        with httpx.stream("GET", f"{url}/v1/usage", params=window) as response:
            _check(response)
            response.read()
            page = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise _no_answer(url, error) from error
    rows = [COLUMNS, *map(_row, page["data"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if page["has_more"]:
        typer.echo(f"… and older ones: --limit, --until {page['data'][-1]['started_at']}")


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    when = str(entry["started_at"])[:19].replace("T", " ")
    ending = "" if entry["ending"] == "complete" else f" {entry['ending']}"
    endpoint = f"{entry['method']} {entry['endpoint']}"
    return (when, f"{entry['status']}{ending}", f"{entry['response_seconds']:.3f}", entry["client_address"], endpoint)


def _check(response: httpx.Response) -> None:
    """Raise what the server says where it says no."""
    if response.is_success:
        return
    response.read()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    raise NoAnswer(f"{response.url.copy_with(query=None)} says {response.status_code}: {message}")


def _no_answer(url: str, error: Exception) -> NoAnswer:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NoAnswer(f"nothing answers at {url}; atelier up starts it, --url or ATELIER_URL name another place")
    if isinstance(error, httpx.UnsupportedProtocol):
        return NoAnswer(f"{url} is no http:// or https:// address")
    return NoAnswer(f"the answer of {url} broke off or is none ({type(error).__name__})")
