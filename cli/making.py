"""Makes sounds and pictures while somebody waits: Ctrl-C closes the connection, and the model stops."""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import typer

from cli.client import PATIENCE, Server, asked
from cli.errors import NoAnswer
from cli.events import Event, events_of
from cli.progress import Watch
from cli.saving import STDOUT, check_is_free, numbered, written

EVENTS = "text/event-stream"
FINISHED = "text/event-stream; final=1"


def make(
    server: Server,
    path: str,
    body: Mapping[str, Any],
    to: Path,
    *,
    number: int = 1,
    previews: Path | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Have something made, and write it down: `number` files, of which none is left half-written.

    Args:
        server: who makes it.
        path: of the route.
        body: `json`, or `files` and `data`, as httpx takes them.
        to: the file; `-` is standard output, which gets sound as it is made.
        number: of files.
        previews: a folder for the sketches on the way.
        force: whether files may be replaced.
        as_json: whether what has come of it is told as JSON.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
        Refused: a file cannot be written.
    """
    files = [numbered(to, each, number) for each in range(1, number + 1)]
    for file in files:
        check_is_free(file, force=force)
    headers = {"accept": EVENTS if to == STDOUT and number == 1 else FINISHED}
    with (
        Watch(to.stem, previews) as watch,
        asked("POST", server, path, headers=headers, timeout=PATIENCE, **body) as response,
    ):
        with ExitStack() as open_files:
            num_files = 0
            for begins, data in pieces_of(response, watch):
                if begins:
                    if num_files == len(files):
                        raise NoAnswer(f"{server.url} has made more than was asked for")
                    write = open_files.enter_context(written(files[num_files], force=force))
                    num_files += 1
                write(data)
            if num_files < len(files):
                raise NoAnswer(f"the answer of {server.url} broke off")
        tell(response, files, watch.previews, as_json=as_json)


def pieces_of(response: httpx.Response, watch: Watch) -> Iterator[tuple[bool, bytes]]:
    """Yield the bytes of all files in turn, and of each piece whether a file begins with it.

    A server that knows no such events answers with a document, or with the bare file.

    Raises:
        NoAnswer: with something else, or it broke off.
    """
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if media_type == "application/json":
        response.read()
        for picture in response.json()["data"]:
            yield True, base64.b64decode(picture["b64_json"])
    elif media_type.startswith(("audio/", "image/")):
        for number, data in enumerate(response.iter_bytes()):
            yield number == 0, data
    elif media_type == EVENTS:
        yield from outputs_of(events_of(response.iter_lines()), watch)
    else:
        raise NoAnswer(f"what {response.url} answers is none of the kind, but {media_type or 'nothing known'}")


def outputs_of(events: Iterator[Event], watch: Watch) -> Iterator[tuple[bool, bytes]]:
    """Yield the pieces that events hold.

    Raises:
        NoAnswer: it ends before it is done.
    """
    variant: object = events  # nobody's
    for event in events:
        watch.tell(event)
        if event.name == "output":
            yield event.fields.get("variant") != variant, base64.b64decode(event.fields["b64"])
            variant = event.fields.get("variant")
        elif event.name == "done":
            return
    raise NoAnswer("the answer broke off")


def tell(response: httpx.Response, files: list[Path], previews: list[str], *, as_json: bool) -> None:
    """Say what has been made; nothing on a standard output that has the file itself."""
    names = [str(file) for file in files]
    if as_json:
        seed = response.headers.get("x-seed")
        made = {"files": names, "previews": previews, "model": response.headers.get("x-model")}
        said = json.dumps({**made, "seed": int(seed) if seed else None})
        typer.echo(said, err=STDOUT in files)
    elif STDOUT not in files:
        typer.echo("\n".join([*previews, *names]))
