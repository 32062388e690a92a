"""One run of a program as a child process: started, watched and ended together with what it has started itself."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from cli import family

MAX_WORDS = 4096  # bytes at the end of a log that are looked at


@dataclass(frozen=True)
class Program:
    """What is to be kept running.

    Args:
        name: what a user calls it.
        command: what is run.
        environment: all of it.
        folder: where it runs.
        log: the file that its output is added to.
        ready_url: answers 200 once it can be used; None: it can be at once.
        works_inside: it does its work in a process that it starts, as `bentoml serve` does. Without that process it
            still holds its port, and callers hang.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    ready_url: str | None = None
    works_inside: bool = False


class Child:
    """A running program, in a session of its own: a Ctrl-C in the terminal reaches the supervisor alone."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process) -> None:
        self.program = program
        self.process = process
        self._inside: set[psutil.Process] = set()

    @classmethod
    async def start(cls, program: Program) -> Self:
        """Run the program.

        Raises:
            OSError: its file is not there or cannot be run.
        """
        with program.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=program.folder,
                env=program.environment,
                start_new_session=True,
            )
        return cls(program, process)

    def look_once(self) -> None:
        """Look, unless something was found before: a look goes through all processes of the machine."""
        if self.program.works_inside and not self._inside:
            self.look()

    def look(self) -> None:
        """Remember what it has started: once it is dead nobody can tell any more."""
        with suppress(psutil.NoSuchProcess):
            self._inside.update(family.descendants(psutil.Process(self.process.pid)))

    @property
    def is_hollow(self) -> bool:
        """Whether it runs on without the process that does its work."""
        self.look_once()
        return self.program.works_inside and bool(self._inside) and not any(map(family.is_alive, self._inside))

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        status = self.process.returncode
        if status is None:
            return "lost its inner process"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    @property
    def last_words(self) -> str:
        """The sentence with which it refused to run, where it did: our programs put their name before it."""
        with self.program.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_WORDS))
            *_, last = log.read().decode(errors="replace").splitlines() or [""]
        return last.removeprefix("atelier: ") if last.startswith("atelier: ") else ""

    async def end(self, grace_seconds: float, at_once: asyncio.Event) -> None:
        """Ask it to end, and after a while or `at_once` kill it; nothing that it started is left."""
        self.look()
        if self.process.returncode is None:
            self.process.terminate()
            ended = asyncio.ensure_future(self.process.wait())
            hurry = asyncio.ensure_future(at_once.wait())
            await asyncio.wait({ended, hurry}, timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
        await self.kill()

    async def kill(self) -> None:
        """End it and all that it started at once."""
        self.look()
        family.kill(self._inside)
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def bound(log: Path, max_bytes: int) -> None:
    """Move a log that has become too long aside, in place of the one moved before; its writer goes on unaware."""
    if log.exists() and log.stat().st_size > max_bytes:
        log.with_suffix(".log.1").write_bytes(log.read_bytes())
        os.truncate(log, 0)
