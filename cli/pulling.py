"""`atelier models pull`: weights of the hub onto this machine, before anybody asks for them."""

import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cli.errors import Refused
from cli.settings import Settings
from services.engine.hub import fetch
from services.errors import ModelUnavailable
from services.registry import HubFiles, Model


def pull(ids: Sequence[str], *, every: bool) -> None:
    """Fetch models, or what a start would load; all that is here then has been checked.

    Raises:
        Refused: there is no such model, or its files cannot be had.
    """
    for model, hub in chosen(Settings.read().models, ids, every=every).items():
        try:
            num_bytes = _pull(model, hub)
        except ModelUnavailable as error:
            raise Refused(error.message) from error
        typer.echo(f"{model}: {num_bytes / 1e9:.2f} GB, checked; {hub.licence}, {hub.licence_url}")


def chosen(models: Sequence[Model], ids: Sequence[str], *, every: bool) -> dict[str, HubFiles]:
    """Where models and adapters are, by name; without any id those that a start loads from the hub, or `every` one.

    Args:
        models: all that there are.
        ids: of models, which come with their adapters, or `model:adapter`.
        every: whether to fetch also what loads on demand.

    Raises:
        Refused: there is no such, or the hub does not have it.
    """
    known = {name: {name: hub} for model in models for name, hub in model.hub_files.items()}
    known |= {model.id: model.hub_files for model in models}
    unknown = [each for each in ids if each not in known]
    if unknown:
        raise Refused(f"there is no model {', '.join(unknown)}; there are: {', '.join(model.id for model in models)}")
    local = [each for each in ids if not known[each]]
    if local:
        raise Refused(f"{', '.join(local)}: none of the hub's, and nothing to fetch")
    wanted = ids or [model.id for model in models if every or model.is_preloaded_in("hub")]
    return {name: hub for each in wanted for name, hub in known[each].items()}


def _pull(model_id: str, hub: HubFiles) -> int:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(model_id, total=None)

        def tell(here: int, total: int) -> None:
            progress.update(bar, completed=here, total=total)

        folder = fetch(model_id, hub, tell, checks_all=True)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
