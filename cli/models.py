"""`atelier models`: what the key may ask for."""

import json
from collections.abc import Mapping
from typing import Any

import typer

from cli.client import Server, answer, table

COLUMNS = ("Model", "Task", "State", "Default", "Licence")


def print_models(server: Server, *, as_json: bool) -> None:
    """Print the models, a line each, or the server's own list.

    Raises:
        NoAnswer: nothing answers, or it says no.
    """
    page = answer("GET", server, "/v1/models", timeout=30)
    if as_json:
        typer.echo(json.dumps(page))
        return
    for line in table([COLUMNS, *map(_row, page["data"])]):
        typer.echo(line)


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    default = "yes" if model.get("is_default") else "-"
    return (model["id"], model.get("task") or "-", model.get("state") or "-", default, model.get("licence") or "-")
