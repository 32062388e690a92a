"""`atelier keys`: who may call, over HTTP."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import typer

from cli.client import DEFAULT_URL, Url, answer, table

COLUMNS = ("Id", "Owner", "Scopes", "Models", "Limits", "Made (UTC)", "Last used (UTC)", "State")
LIMITS = {"requests_per_minute": "a minute", "concurrent_streams": "at once"}
BUDGET = re.compile(r"(\w+):(\w+)=([\d.e+-]+)")
PAGE_KEYS = 1000

app = typer.Typer(help="Make, list, change and revoke keys; needs an admin's in ATELIER_API_KEY.", no_args_is_help=True)


@app.command()
def create(
    owner: Annotated[str, typer.Option(help="Whose key it is: a name for people.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="A modality, or admin. Repeat; all but admin without.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that may be used. Repeat; all without.")] = None,
    expires: Annotated[str | None, typer.Option(help="Until when, as 2027-01-31T12:00; UTC.")] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Generations that may be begun in a minute.")] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="Generations that may be under way at once.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="As day:tokens=100000 or month:money=20; repeat.")] = None,
    log_content: Annotated[
        str | None, typer.Option(help="What the usage log keeps of prompts and answers: none, prompts or all.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Make a key, and print it: this once."""
    asked_for = {
        "owner": owner,
        "scopes": scope,
        "models": model,
        "expires_at": expires,
        "requests_per_minute": rpm,
        "concurrent_streams": streams,
        "budgets": _budgets(budget or ()),
        "log_content": log_content,
    }
    body = {name: value for name, value in asked_for.items() if value}
    made = answer("POST", url, "/v1/keys", json=body)
    typer.echo(f"Key {made['id']} of {made['owner']}; it is shown this once:", err=True)
    typer.echo(made["key"])


@app.command("list")
def list_keys(url: Url = DEFAULT_URL) -> None:
    """List the keys, newest first, revoked ones too."""
    for line in table([COLUMNS, *map(_row, _keys(url))]):
        typer.echo(line)


@app.command()
def change(
    key_id: Annotated[str, typer.Argument(help="As the list shows it.")],
    owner: Annotated[str | None, typer.Option(help="Whose key it is.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="A modality, or admin. Repeat: all that it shall have.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that may be used. Repeat: all of them; 'all': any.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Until when, as 2027-01-31T12:00; UTC; 'never'.")] = None,
    rpm: Annotated[
        int | None, typer.Option(min=0, help="Generations that may be begun in a minute; 0: any number.")
    ] = None,
    streams: Annotated[
        int | None, typer.Option(min=0, help="Generations that may be under way at once; 0: any number.")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="As day:tokens=100000. Repeat: all of them; 'none': no limit.")
    ] = None,
    log_content: Annotated[
        str | None, typer.Option(help="none, prompts or all; 'default': what the usage log keeps of everybody's.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Change what a key may; what is not named stays."""
    asked_for = {
        "owner": owner,
        "scopes": scope,
        "models": None if model == ["all"] else model,
        "expires_at": None if expires == "never" else expires,
        "requests_per_minute": rpm or None,
        "concurrent_streams": streams or None,
        "budgets": {} if budget == ["none"] else _budgets(budget or ()),
        "log_content": None if log_content == "default" else log_content,
    }
    given = (owner, scope, model, expires, rpm, streams, budget, log_content)
    body = {name: value for (name, value), option in zip(asked_for.items(), given, strict=True) if option is not None}
    if not body:
        raise typer.BadParameter("name what shall change, such as --rpm 60")
    changed = answer("PATCH", url, f"/v1/keys/{key_id}", json=body)
    for line in table([COLUMNS, _row(changed)]):
        typer.echo(line)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As the list shows it.")], url: Url = DEFAULT_URL) -> None:
    """End a key."""
    revoked = answer("DELETE", url, f"/v1/keys/{key_id}")
    typer.echo(f"Key {revoked['id']} of {revoked['owner']} opens nothing any more.")


def _budgets(written: Iterable[str]) -> dict[str, dict[str, str]]:
    budgets: dict[str, dict[str, str]] = {}
    for one in written:
        match = BUDGET.fullmatch(one)
        if match is None:
            raise typer.BadParameter(f"{one} is not as day:tokens=100000", param_hint="--budget")
        period, unit, amount = match.groups()
        budgets.setdefault(period, {})[unit] = amount
    return budgets


def _keys(url: str) -> Iterator[Mapping[str, Any]]:
    window = {"limit": str(PAGE_KEYS)}
    while True:
        page = answer("GET", url, "/v1/keys", params=window)
        yield from page["data"]
        if not page["has_more"]:
            return
        window["after"] = page["data"][-1]["id"]


def _row(key: Mapping[str, Any]) -> tuple[str, ...]:
    state = "open"
    if key["revoked_at"]:
        state = f"revoked {_when(key['revoked_at'])}"
    elif key["expires_at"]:
        state = f"until {_when(key['expires_at'])}"
    limits = [f"{key[name]} {unit}" for name, unit in LIMITS.items() if key[name]]
    limits += [
        f"{limit:g} {unit} a {period}" for period, budget in key["budgets"].items() for unit, limit in budget.items()
    ]
    return (
        key["id"],
        key["owner"],
        ",".join(key["scopes"]),
        ",".join(key["models"] or ("all",)),
        ", ".join(limits) or "none",
        _when(key["created_at"]),
        _when(key["last_used_at"] or "never"),
        state,
    )


def _when(instant: str) -> str:
    return instant[:16].replace("T", " ")
