"""Jobs as the commands use them: begin one, follow it to its end, fetch its files; Ctrl-C cancels it."""

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import typer

from cli.client import PATIENCE, Server, answer, asked
from cli.errors import CommandError, NoAnswer
from cli.events import END, Event, events_of
from cli.progress import Watch
from cli.saving import STDOUT, check_is_free, written

TRIES = 30  # connections that break off, and following ends


def commission(
    server: Server,
    path: str,
    body: Mapping[str, Any],
    outputs: Mapping[str, Path],
    *,
    previews: Path | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Have something made by a job, and write its files.

    Args:
        server: who makes it.
        path: of the route that takes such jobs.
        body: `json`, or `files` and `data`, as httpx takes them.
        outputs: the files, by the variants that they are of.
        previews: a folder for the sketches on the way.
        force: whether files may be replaced.
        as_json: whether the job is told as JSON.

    Raises:
        NoAnswer: nothing answers, it says no, or the job comes to nothing.
        Refused: a file cannot be written.
    """
    for file in outputs.values():
        check_is_free(file, force=force)
    first = next(iter(outputs.values()))
    job_id = ""
    try:
        with uninterrupted():
            job_id = answer("POST", server, path, timeout=PATIENCE, **body)["id"]
        with Watch(first.stem, previews) as watch:
            for event in happenings(server, job_id):
                watch.tell(event)
        job = answer("GET", server, f"/v1/jobs/{job_id}")
        check_is_done(job)
        for variant, file in outputs.items():
            download(server, job_id, variant, file, force=force)
    except KeyboardInterrupt:
        if job_id:
            cancel(server, job_id)
        raise
    names = [str(file) for file in outputs.values()]
    if as_json:
        typer.echo(json.dumps({**job, "files": names, "previews": watch.previews}), err=STDOUT in outputs.values())
    elif STDOUT not in outputs.values():
        typer.echo("\n".join([*watch.previews, *names]))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait: a job whose id nobody has read could not be cancelled."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def happenings(server: Server | str, job_id: str) -> Iterator[Event]:
    """Yield what happens to a job until it has ended; a connection that breaks off is taken up again.

    Raises:
        NoAnswer: nothing answers, it says no, or it breaks off again and again.
    """
    seen = ""
    for _ in range(TRIES):
        headers = {"last-event-id": seen} if seen else {}
        with asked("GET", server, f"/v1/jobs/{job_id}/events", headers=headers, timeout=PATIENCE) as response:
            try:
                for event in events_of(response.iter_lines()):
                    if event.name == END:
                        return
                    seen = event.number or seen
                    yield event
            except httpx.RemoteProtocolError:
                continue  # the gateway is restarting
    raise NoAnswer(f"{job_id} cannot be followed: the connection breaks off; atelier jobs show {job_id} tells of it")


def check_is_done(job: Mapping[str, Any]) -> None:
    """Refuse what has come to nothing.

    Raises:
        NoAnswer: it has failed, or somebody has cancelled it.
    """
    if job["status"] != "completed":
        reason = (job.get("error") or {}).get("message")
        raise NoAnswer(f"{job['id']} is {job['status']}" + (f": {reason}" if reason else ""))


def download(server: Server, job_id: str, variant: str, file: Path, *, force: bool) -> None:
    """Fetch a file of a job."""
    path = f"/v1/jobs/{job_id}/content"
    with (
        asked("GET", server, path, params={"variant": variant}, timeout=PATIENCE) as response,
        written(file, force=force) as write,
    ):
        for piece in response.iter_bytes():
            write(piece)


def cancel(server: Server, job_id: str) -> None:
    """End a job, and say what has become of it."""
    try:
        status = answer("POST", server, f"/v1/jobs/{job_id}/cancel")["status"]
    except CommandError as error:
        typer.echo(f"atelier: {job_id} may go on: {error}", err=True)
    else:
        typer.echo(f"atelier: {job_id} is {status}", err=True)
