"""What a user sees of work under way: a bar on the terminal, previews in a folder; told by events."""

import base64
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cli.errors import Refused
from cli.events import Event
from cli.saving import save

Previews = Annotated[Path | None, typer.Option(help="A folder for the sketches on the way.")]
WAITING = {"queued": "waits", "started": "works", "in_progress": "works"}


class Watch:
    """Shows how far it is, on standard error where that is a terminal; keeps previews where somebody wants them."""

    def __init__(self, stem: str, previews: Path | None = None) -> None:
        """Name previews after `stem`, in the folder `previews`; None: nobody wants them."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        is_seen = sys.stderr.isatty()
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_seen)
        self._bar = self._progress.add_task("waits", total=None, left="")
        self._stem = stem
        self._folder = previews
        self.previews: list[str] = []

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._folder is not None:
            try:
                self._folder.mkdir(exist_ok=True)
            except OSError as error:
                raise Refused(f"{self._folder} cannot be made: {error.strerror}") from error
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, and leave the terminal as it was."""
        self._progress.stop()

    def tell(self, event: Event) -> None:
        """Take in what has happened; what it is not about is passed over."""
        fields = event.fields
        match event.name:
            case "queued":
                self._show(f"waits behind {fields['position']}" if fields.get("position") else "waits")
            case "started":
                self._show("works")
            case "status":
                steps = f" on {fields['step']} of {fields['steps']}" if fields["steps"] > 1 else ""
                self._show(WAITING.get(fields["status"], fields["status"]) + steps)
            case "progress" if fields.get("steps"):
                eta = fields.get("eta_seconds")
                left = f"{fields['step']}/{fields['steps']}" + (f", {eta:.0f} s left" if eta is not None else "")
                self._progress.update(
                    self._bar, description="works", completed=fields["step"], total=fields["steps"], left=left
                )
            case "preview" if self._folder is not None:
                path = self._folder / f"{self._stem}-preview-{len(self.previews) + 1}.jpg"
                save(path, base64.b64decode(fields["b64"]))
                self.previews.append(str(path))

    def _show(self, words: str) -> None:
        self._progress.update(self._bar, description=words)
