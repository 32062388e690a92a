"""`atelier usage`: the gateway's usage log and its totals over HTTP, as a CSV file or as a table."""

import sys
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import httpx
import typer

from cli.errors import NoAnswer

LOG, TOTALS = "/v1/usage", "/v1/usage/summary"
COLUMNS = ("When (UTC)", "Status", "Seconds", "Client", "Endpoint")


def print_csv(url: str, query: Mapping[str, str]) -> None:
    """Write the CSV file that is at `url` to standard output as it comes.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
    """
    try:
        with httpx.stream("GET", url, params=query, headers={"accept": "text/csv"}) as response:
            _check(response)
            for chunk in response.iter_bytes():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    except httpx.HTTPError as error:
        raise _no_answer(url.removesuffix(TOTALS).removesuffix(LOG), error) from error


def print_table(url: str, window: Mapping[str, str]) -> None:
    """Print the newest requests, a line each.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    page = _json(url, LOG, window)
    _print_rows([COLUMNS, *map(_row, page["data"])])
    if page["has_more"]:
        typer.echo(f"… and older ones: --limit, --until {page['data'][-1]['started_at']}")


def print_totals(url: str, query: Mapping[str, str]) -> None:
    """Print what the requests come to, a line for each group of each stretch of time.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    page = _json(url, TOTALS, query)
    groups = [name for name in query.get("group_by", "").split(",") if name]
    heading = ("From", "To", *(group.title() for group in groups), "Requests", "Failures", "Seconds", "Made")
    rows = [_total(bucket, total, groups) for bucket in page["data"] for total in bucket["results"]]
    _print_rows([heading, *rows])
    if page["has_more"]:
        typer.echo(f"… and later ones: --limit, --since {page['data'][-1]['end']}")


def _json(url: str, path: str, query: Mapping[str, str]) -> Any:
    try:
        with httpx.stream("GET", url + path, params=query) as response:
            _check(response)
            response.read()
            return response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise _no_answer(url, error) from error


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _total(bucket: Mapping[str, Any], total: Mapping[str, Any], groups: Sequence[str]) -> tuple[str, ...]:
    """Show a group; its stretch of time with its last day."""
    last_day = date.fromisoformat(bucket["end"]) - timedelta(days=1)
    made = ", ".join(f"{round(number, 1):,} {unit.replace('_', ' ')}" for unit, number in total["units"].items())
    numbers = (f"{total['requests']:,}", f"{total['failures']:,}", f"{total['response_seconds']:,.1f}")
    return (bucket["start"], str(last_day), *(total[group] or "-" for group in groups), *numbers, made)


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
