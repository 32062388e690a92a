"""`atelier usage`: the gateway's usage log over HTTP, as a CSV file or as a table."""

import sys
from collections.abc import Mapping
from typing import Any

import typer

from cli.client import answer, asked, table

COLUMNS = ("When (UTC)", "Status", "Seconds", "Client", "Endpoint")


def print_csv(url: str, window: Mapping[str, str]) -> None:
    """Write the CSV file to standard output as it comes.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
    """
    with asked("GET", url, "/v1/usage", params=window, headers={"accept": "text/csv"}) as response:
        for chunk in response.iter_bytes():
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def print_table(url: str, window: Mapping[str, str]) -> None:
    """Print the newest requests, a line each.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    page = answer("GET", url, "/v1/usage", params=window)
    for line in table([COLUMNS, *map(_row, page["data"])]):
        typer.echo(line)
    if page["has_more"]:
        typer.echo(f"… and older ones: --limit, --until {page['data'][-1]['started_at']}")


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    when = str(entry["started_at"])[:19].replace("T", " ")
    ending = "" if entry["ending"] == "complete" else f" {entry['ending']}"
    endpoint = f"{entry['method']} {entry['endpoint']}"
    return (when, f"{entry['status']}{ending}", f"{entry['response_seconds']:.3f}", entry["client_address"], endpoint)
