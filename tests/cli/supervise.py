"""Runs a supervisor over stand-ins, in a process that a test can kill: `python -m tests.cli.supervise FOLDER NAME…`."""

import asyncio
import os
import sys
from pathlib import Path

import typer

from cli.child import Program
from cli.errors import NotStarted
from cli.supervisor import Supervisor

ROOT = Path(__file__).parent.parent.parent


def program(name: str, folder: Path) -> Program:
    """The stand-in `name` as a program to keep running."""
    return Program(
        name=name,
        command=(sys.executable, "-m", "tests.cli.stand_ins", name, str(folder)),
        environment=os.environ,
        folder=ROOT,
        log=folder / f"{name}.log",
        ready_url=os.environ.get("READY_URL"),
        works_inside=name.startswith("nested"),
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    programs = [program(name, folder) for name in sys.argv[2:]]
    try:
        asyncio.run(Supervisor(programs, typer.echo, grace_seconds=float(os.environ["GRACE_SECONDS"])).run())
    except NotStarted as error:
        typer.echo(f"gave up: {error}")
        sys.exit(1)
