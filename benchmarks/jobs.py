"""Durable jobs: `python -m benchmarks.jobs`; what one costs.

The worker is a stand-in that answers at once with a file of 1,000 bytes in a job's own shape: what is measured is all
that the gateway does for a job, with all its real steps (acceptance, claim, call, file on the disk, books, end).
`--postgres URL` (`postgresql+asyncpg://…`, an empty database) goes before SQLite.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

TASKS = ("text", "audio", "image", "video", "mesh")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/3d/generations": {"prompt": "a chair"},
    "/v1/videos": {"prompt": "a boat"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
}
UNITS = {
    "/v1/3d/generations": {"meshes": 1},
    "/v1/videos": {"frames": 9},
    "/v1/chat/completions": {"completion_tokens": 5},
}
SIZE = 1000


def sent(name: str, **data: Any) -> bytes:
    """Encode an event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class Worker:
    """Plays all five workers, and answers at once."""

    async def answer(self, request: Request) -> Response:
        """Answer a probe, or with events."""
        if request.method == "GET":
            return Response()
        await request.body()
        return StreamingResponse(self._pieces(request.url.path), media_type="text/event-stream")

    async def _pieces(self, path: str) -> Any:
        yield sent("started")
        content = random.randbytes(SIZE)
        named = {"variant": "file", "media_type": "application/octet-stream"}
        yield sent("output", **named, b64=base64.b64encode(content).decode())
        yield sent("file", **named, bytes=SIZE, sha256=hashlib.sha256(content).hexdigest())
        yield sent("done", usage=UNITS[path])


class Gateway:
    """`python -m gateway`."""

    def __init__(self, worker: str, data_dir: Path, settings: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        urls = {f"ATELIER_{task.upper()}_URL": worker for task in TASKS}
        own = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
        environment = {
            **own,
            **urls,
            "ATELIER_PORT": str(self.port),
            "ATELIER_DATA_DIR": str(data_dir),
            **settings,
        }
        command = [sys.executable, "-m", "gateway"]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
        while True:
            try:
                httpx.get(f"{self.url}/livez", trust_env=False)
            except httpx.HTTPError:
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()

    def memory(self) -> float:
        """MiB, resident."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def serve(worker: Worker) -> str:
    """Serve the stand-in from a thread; return its URL."""
    port = free_port()
    app = Starlette(routes=[Route("/{path:path}", worker.answer, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    return f"http://127.0.0.1:{port}"


async def accept(gateway: Gateway, number: int) -> list[str]:
    """Have jobs accepted; return their ids."""
    gate = asyncio.Semaphore(8)

    async def one(http: httpx.AsyncClient, index: int) -> str:
        path = list(BODIES)[index % len(BODIES)]
        headers = {"prefer": "respond-async", "idempotency-key": f"job-{index}"}
        async with gate:
            answer = await http.post(path, json=BODIES[path], headers=headers)
        if not answer.is_success:
            raise SystemExit(answer.text)
        return str(answer.json()["id"])

    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http:
        return await asyncio.gather(*(one(http, index) for index in range(number)))


async def jobs_of(gateway: Gateway, ids: list[str]) -> list[dict[str, Any]]:
    """Look at all jobs, one after the other until it has ended."""
    found: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http:
        for job_id in ids:
            while True:
                job = (await http.get(f"/v1/jobs/{job_id}")).json()
                if job["status"] not in ("queued", "in_progress"):
                    found.append(job)
                    break
                await asyncio.sleep(0.05)
    return found


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--postgres", default="")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"ATELIER_DATABASE_URL": asked.postgres} if asked.postgres else {}
        gateway = Gateway(serve(Worker()), Path(folder), settings)
        try:
            measure(gateway, asked.jobs)
        finally:
            gateway.close()


def measure(gateway: Gateway, num_jobs: int) -> None:
    """Print jobs a second, accepted and done."""
    before = gateway.memory()
    cpu = psutil.Process(gateway.process.pid)
    began, used = time.perf_counter(), sum(cpu.cpu_times()[:2])
    ids = asyncio.run(accept(gateway, num_jobs))
    accepted = time.perf_counter() - began
    jobs = asyncio.run(jobs_of(gateway, ids))
    seconds = time.perf_counter() - began
    rate, cost = num_jobs / seconds, (sum(cpu.cpu_times()[:2]) - used) / num_jobs * 1000
    print(f"{num_jobs} jobs: accepted in {accepted:.1f} s, done in {seconds:.1f} s: {rate:.1f} jobs/s")  # noqa: T201
    print(f"CPU {cost:.1f} ms a job; memory {before:.0f} -> {gateway.memory():.0f} MiB")  # noqa: T201
    print(Counter(job["status"] for job in jobs))  # noqa: T201


if __name__ == "__main__":
    main()
