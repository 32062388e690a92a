"""The command `atelier`."""

import sys
from typing import Annotated

import typer

from cli import generate, jobs, keys
from cli.client import DEFAULT_URL, Key, Server, Url
from cli.errors import CommandError, Refused
from cli.settings import Settings

app = typer.Typer(
    help="Generative models of every modality behind one HTTP API.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command, and print what stops it as a line."""
    for command in (generate.chat, generate.speak, generate.draw, generate.film, generate.sculpt):
        app.command()(command)
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(keys.app, name="keys")
    app.add_typer(models, name="models")
    try:
        app(prog_name="atelier")
    except CommandError as error:
        for line in str(error).splitlines():
            typer.echo(f"atelier: {line}", err=True)
        sys.exit(1)


@app.command()
def up() -> None:
    """Serve all modalities on this machine until Ctrl-C; settings come from ATELIER_* variables."""
    from cli.up import up as serve  # a client's machine need not have what this looks for

    serve(Settings.read())


@app.command()
def down() -> None:
    """End the `atelier up` that serves the same data folder."""
    from cli.up import down as end

    end(Settings.read())


@app.command()
def serve(task: Annotated[str, typer.Argument(help="text, audio, image, video or mesh")]) -> None:
    """Run one worker alone, in the foreground: `bentoml serve` with a BENTOML_HOME of its own, on its port."""
    from cli.up import become_worker

    become_worker(Settings.read(), task)


models = typer.Typer(help="List the models that the key may use.", rich_markup_mode=None)


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context, as_json: generate.AsJson = False, url: Url = DEFAULT_URL, key: Key = ""
) -> None:
    """List the models that the key may use, or do one of the following."""
    from cli.models import print_models

    if context.invoked_subcommand is None:
        print_models(Server(url, key), as_json=as_json)


@models.command()
def pull(
    ids: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="None: those that a start loads.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All models of the registry.")] = False,
) -> None:
    """Download weights from the hub onto this machine, or go on with it; check what is here."""
    from cli.pulling import pull as fetch  # needs the hub's library, which a client's machine need not have

    fetch(ids or [], every=every)


@app.command()
def usage(
    csv: Annotated[bool, typer.Option("--csv", help="The whole log as a CSV file.")] = False,
    since: Annotated[str | None, typer.Option(help="Earliest start of a request, as 2026-01-31T12:00; UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="End of the time, itself not included.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Requests at most, the newest.")] = None,
    by: Annotated[str, typer.Option(help="Totals of each caller, owner, model or modality; several with commas.")] = "",
    per: Annotated[
        str,
        typer.Option(help="Totals of each hour (1h), day (1d) or month (1mo); of 30 days (24 hours) without --since."),
    ] = "",
    as_json: generate.AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show who asked for what and how it went, newest first; or what it comes to."""
    from cli.usage import LOG, TOTALS, print_csv, print_json, print_table, print_totals

    if csv and as_json:
        raise Refused("--csv and --json are two forms of one thing; choose")
    asked = {"since": since, "until": until, "limit": str(limit) if limit else None}
    if by or per:
        asked |= {"group_by": by or None, "bucket_width": per or "all"}
    query = {name: value for name, value in asked.items() if value is not None}
    path = TOTALS if by or per else LOG
    if csv:
        print_csv(url, path, query)
    elif as_json:
        print_json(url, path, query)
    elif by or per:
        print_totals(url, query)
    else:
        print_table(url, query)
