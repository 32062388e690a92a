"""`atelier jobs`: what is being made and what was, over HTTP."""

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import httpx
import typer

from cli.client import DEFAULT_URL, Url, answer, asked, table
from cli.errors import Refused
from cli.following import happenings

COLUMNS = ("Id", "Kind", "Status", "Done", "Made (UTC)", "Model")
EXTENSIONS = {
    "video": "mp4",
    "thumbnail": "jpg",
    "spritesheet": "jpg",
    "points": "ply",
    "preview": "gif",
    "answer": "json",
}
JobId = Annotated[str, typer.Argument(help="As the list shows it.")]

app = typer.Typer(help="List, show, follow, cancel and fetch jobs.", no_args_is_help=True)


@app.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="queued, in_progress, completed, failed or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="text, audio, image, video or mesh.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Jobs at most, the newest.")] = 20,
    url: Url = DEFAULT_URL,
) -> None:
    """List your jobs, newest first."""
    given = {"status": status, "kind": kind, "limit": str(limit)}
    page = answer("GET", url, "/v1/jobs", params={name: value for name, value in given.items() if value is not None})
    for line in table([COLUMNS, *map(_row, page["data"])]):
        typer.echo(line)


@app.command()
def show(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """Show all that is known of a job, as JSON."""
    typer.echo(json.dumps(answer("GET", url, f"/v1/jobs/{job_id}"), indent=2))


@app.command()
def follow(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """Print what happens to a job until it has ended; a connection that breaks off is taken up again."""
    for event in happenings(url, job_id):
        typer.echo(_told(event.name, event.fields))


@app.command()
def cancel(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """End a job."""
    typer.echo(f"{job_id} is {answer('POST', url, f'/v1/jobs/{job_id}/cancel')['status']}.")


@app.command()
def fetch(
    job_id: JobId,
    variant: Annotated[str | None, typer.Option(help="One file, by its name; all without.")] = None,
    to: Annotated[Path, typer.Option(help="The folder.")] = Path(),
    url: Url = DEFAULT_URL,
) -> None:
    """Download a job's files."""
    job = answer("GET", url, f"/v1/jobs/{job_id}")
    outputs = {_named(each): each for each in job["outputs"]}
    chosen = [variant] if variant is not None else list(outputs)
    if not outputs or any(name not in outputs for name in chosen):
        raise Refused(f"{job_id} is {job['status']} and has these files: {', '.join(outputs) or 'none'}")
    for name in chosen:
        path = to / f"{job_id}-{name}.{_extension(outputs[name])}"
        with asked("GET", url, outputs[name]["url"]) as response:
            _save(path, response)
        typer.echo(str(path))


def _save(path: Path, response: httpx.Response) -> None:
    """Write a file that is whole, or none."""
    try:
        with NamedTemporaryFile(dir=path.parent) as file:
            for piece in response.iter_bytes():
                file.write(piece)
            file.flush()
            shutil.copyfile(file.name, path)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from error


def _named(output: Mapping[str, Any]) -> str:
    """What a file is called: in a chain, what a later step has made again has its step in its name."""
    return f"{output['variant']}-step-{output['step']}" if "&step=" in output["url"] else str(output["variant"])


def _extension(output: Mapping[str, Any]) -> str:
    kind = output["media_type"].partition("/")[2].removeprefix("x-").replace("gltf-binary", "glb")
    return EXTENSIONS.get(output["variant"]) or str(kind)


def _told(name: str, data: Mapping[str, Any]) -> str:
    match name:
        case "status":
            return f"{data['status']} (step {data['step']} of {data['steps']})"
        case "progress" if "steps" in data:
            eta = f", {data['eta_seconds']:.0f} s left" if data.get("eta_seconds") is not None else ""
            return f"{data['progress']} %: {data['step']} of {data['steps']}{eta}"
        case "progress":
            return f"position {data.get('position')} in the worker's queue"
    return name


def _row(job: Mapping[str, Any]) -> tuple[str, ...]:
    made = datetime.fromtimestamp(job["created_at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    return (job["id"], job["kind"], job["status"], f"{job['progress']} %", made, job["model"] or "-")
