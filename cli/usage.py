"""`atelier usage`: the gateway's usage log and its totals over HTTP, as a CSV file, as JSON or as a table."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import typer

from cli.client import answer, asked, table

LOG, TOTALS = "/v1/usage", "/v1/usage/summary"
COLUMNS = ("When (UTC)", "Status", "Seconds", "Client", "Endpoint")


def print_csv(url: str, path: str, query: Mapping[str, str]) -> None:
    """Write the CSV file that is at `path` to standard output as it comes.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
    """
    with asked("GET", url, path, params=query, headers={"accept": "text/csv"}) as response:
        for chunk in response.iter_bytes():
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def print_json(url: str, path: str, query: Mapping[str, str]) -> None:
    """Print the server's own page of what is at `path`.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    typer.echo(json.dumps(answer("GET", url, path, params=query)))


def print_table(url: str, window: Mapping[str, str]) -> None:
    """Print the newest requests, a line each.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    page = answer("GET", url, LOG, params=window)
    _print_rows([COLUMNS, *map(_row, page["data"])])
    if page["has_more"]:
        typer.echo(f"… and older ones: --limit, --until {page['data'][-1]['started_at']}")


def print_totals(url: str, query: Mapping[str, str]) -> None:
    """Print what the requests come to, a line for each group of each stretch of time.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    page = answer("GET", url, TOTALS, params=query)
    groups = [name for name in query.get("group_by", "").split(",") if name]
    heading = ("From", "To", *(group.title() for group in groups), "Requests", "Failures", "Seconds", "Made")
    rows = [_total(bucket, total, groups) for bucket in page["data"] for total in bucket["results"]]
    _print_rows([heading, *rows])
    if page["has_more"]:
        typer.echo(f"… and later ones: --limit, --since {page['data'][-1]['end']}")


def _print_rows(rows: list[tuple[str, ...]]) -> None:
    for line in table(rows):
        typer.echo(line)


def _total(bucket: Mapping[str, Any], total: Mapping[str, Any], groups: Sequence[str]) -> tuple[str, ...]:
    """Show a group; its stretch of time with its last day, or the end of its hour."""
    begin, end = (str(bucket[name]) for name in ("start", "end"))
    last = end[:16] if "T" in end else str(date.fromisoformat(end) - timedelta(days=1))
    made = ", ".join(f"{round(number, 1):,} {unit.replace('_', ' ')}" for unit, number in total["units"].items())
    numbers = (f"{total['requests']:,}", f"{total['failures']:,}", f"{total['response_seconds']:,.1f}")
    return (begin[:16], last, *(total[group] or "-" for group in groups), *numbers, made)


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    when = str(entry["started_at"])[:19].replace("T", " ")
    ending = "" if entry["ending"] == "complete" else f" {entry['ending']}"
    endpoint = f"{entry['method']} {entry['endpoint']}"
    return (when, f"{entry['status']}{ending}", f"{entry['response_seconds']:.3f}", entry["client_address"], endpoint)
