"""`python -m gateway` as a process of its own, and a worker that waits for a word of the test."""

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.gateway.conftest import LONG, TASKS, served

LIMITED = (
    sys.executable,
    "-c",
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
    "runpy.run_module('gateway', run_name='__main__')",
)
LISTENS = re.compile(r"running on (http://[\d.:]+)")


@dataclass
class Worker:
    """A worker that answers with two pieces, the second once the test opens the gate; keeps what it was asked."""

    gate: threading.Event = field(default_factory=threading.Event)
    headers: list[dict[str, str]] = field(default_factory=list)
    breaks_off: bool = False

    async def answer(self, request: Request) -> Response:
        if request.method == "GET":
            return Response()
        self.headers.append(dict(request.headers))
        return StreamingResponse(self.pieces(), media_type="audio/wav")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        yield b"first"
        await asyncio.to_thread(self.gate.wait, LONG)
        if self.breaks_off:
            raise ConnectionResetError
        yield b"second"

    @contextmanager
    def serve(self) -> Iterator[str]:
        app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])
        with served(app) as url:
            try:
                yield url
            finally:
                self.gate.set()


@dataclass
class Process:
    """A running gateway; its log is read until it ends."""

    process: "subprocess.Popen[str]"
    url: str
    data_dir: Path
    lines: list[str]
    reader: threading.Thread

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        code = self.process.wait(LONG)
        self.reader.join(LONG)
        return code

    def status_of_readyz(self) -> str:
        return str(httpx.get(f"{self.url}/readyz", trust_env=False, timeout=LONG).json()["status"])

    def rows(self) -> list[dict[str, Any]]:
        """The usage log; to be read when it has ended."""
        with closing(sqlite3.connect(self.data_dir / "atelier.sqlite3")) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM usage ORDER BY started_at")]


@contextmanager
def running(data_dir: Path, worker: str, max_file_bytes: str = "", **settings: str) -> Iterator[Process]:
    """Start a gateway in front of a worker, and wait until it listens; it is killed at the end, if it still runs.

    With `max_file_bytes` a longer file is to it as if the disk were full.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "OTEL_"))}
    urls = {f"ATELIER_{task.upper()}_URL": worker for task in TASKS}
    environment = {**own, **urls, "ATELIER_PORT": "0", "ATELIER_DATA_DIR": str(data_dir), **settings}
    command = [*LIMITED, max_file_bytes] if max_file_bytes else [sys.executable, "-m", "gateway"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines: list[str] = []
            url = None
            while url is None:
                lines.append(process.stderr.readline())
                assert lines[-1], f"it ended: {''.join(lines)}"
                url = LISTENS.search(lines[-1])
            reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
            reader.start()
            yield Process(process, url.group(1), data_dir, lines, reader)
        finally:
            process.kill()
