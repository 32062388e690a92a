"""`atelier models pull`: weights of the hub onto this machine, before anybody asks for them."""

import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cli.errors import Refused
from services.engine.hub import fetch
from services.errors import ModelUnavailable
from services.registry import Model, load_models


def pull(ids: Sequence[str], *, every: bool) -> None:
    """Fetch models, or what a start would load; all that is here then has been checked.

    Raises:
        Refused: there is no such model, or its files cannot be had.
    """
    for model in chosen(ids, every=every):
        try:
            num_bytes = _pull(model)
        except ModelUnavailable as error:
            raise Refused(error.message) from error
        typer.echo(f"{model.id}: {num_bytes / 1e9:.2f} GB, checked; {model.hub.licence}, {model.hub.licence_url}")


def chosen(ids: Sequence[str], *, every: bool) -> list[Model]:
    """The models of these ids; without any, those that a start loads, or `every` one.

    Raises:
        Refused: there is no such.
    """
    known = {model.id: model for model in load_models()}
    unknown = [each for each in ids if each not in known]
    if unknown:
        raise Refused(f"there is no model {', '.join(unknown)}; there are: {', '.join(known)}")
    if ids:
        return [known[each] for each in dict.fromkeys(ids)]
    return [model for model in known.values() if every or model.is_preloaded_in("hub")]


def _pull(model: Model) -> int:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(model.id, total=None)

        def tell(here: int, total: int) -> None:
            progress.update(bar, completed=here, total=total)

        folder = fetch(model.id, model.hub, tell, checks_all=True)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
