"""Durable jobs: `python -m benchmarks.jobs`; what one costs, and what becomes of them when processes are killed.

The worker is a stand-in that answers at once with a file of 1,000 bytes in a job's own shape: what is measured is all
that the gateway does for a job, with all its real steps (acceptance, claim, call, file on the disk, books, end).
`--chaos` kills gateways with SIGKILL while jobs are under way, and then looks whether each ended once.
`--postgres URL` (`postgresql+asyncpg://…`, an empty database) goes before SQLite. `--chaos` has two gateways, and calls
last `--seconds`: enough for all kills to come while jobs are under way.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import random
import signal
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
PIECES = 8  # of a slow answer


def sent(name: str, **data: Any) -> bytes:
    """Encode an event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class Worker:
    """Plays all five workers; each call takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def answer(self, request: Request) -> Response:
        """Answer a probe, or with events."""
        if request.method == "GET":
            return Response()
        await request.body()
        return StreamingResponse(self._pieces(request.url.path), media_type="text/event-stream")

    async def _pieces(self, path: str) -> Any:
        yield sent("started")
        content = random.randbytes(SIZE)
        for step in range(PIECES if self._seconds else 0):
            await asyncio.sleep(self._seconds / PIECES)
            yield sent("progress", step=step + 1, steps=PIECES)
        named = {"variant": "file", "media_type": "application/octet-stream"}
        yield sent("output", **named, b64=base64.b64encode(content).decode())
        yield sent("file", **named, bytes=SIZE, sha256=hashlib.sha256(content).hexdigest())
        yield sent("done", usage=UNITS[path])


class Gateway:
    """`python -m gateway`, which can be killed and started again."""

    def __init__(self, worker: str, data_dir: Path, settings: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        urls = {f"ATELIER_{task.upper()}_URL": worker for task in TASKS}
        own = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
        self._environment = {
            **own,
            **urls,
            "ATELIER_PORT": str(self.port),
            "ATELIER_DATA_DIR": str(data_dir),
            **settings,
        }
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway"], env=self._environment, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                httpx.get(f"{self.url}/livez", trust_env=False)
            except httpx.HTTPError:
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
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


async def accept(gateways: list[Gateway], number: int) -> list[str]:
    """Have jobs accepted, at whichever gateway lives; return their ids."""
    gate = asyncio.Semaphore(8)

    async def one(http: httpx.AsyncClient, index: int) -> str:
        path = list(BODIES)[index % len(BODIES)]
        headers = {"prefer": "respond-async", "idempotency-key": f"job-{index}"}
        while True:
            gateway = random.choice(gateways)
            try:
                async with gate:
                    answer = await http.post(f"{gateway.url}{path}", json=BODIES[path], headers=headers)
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
                continue
            if answer.is_success:
                return str(answer.json()["id"])
            if answer.status_code < 500:
                raise SystemExit(answer.text)

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        return await asyncio.gather(*(one(http, index) for index in range(number)))


async def jobs_of(gateways: list[Gateway], ids: list[str]) -> dict[str, dict[str, Any]]:
    """Look at all jobs until they have ended."""
    found: dict[str, dict[str, Any]] = {}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        while len(found) < len(ids):
            for job_id in [each for each in ids if each not in found]:
                try:
                    job = (await http.get(f"{random.choice(gateways).url}/v1/jobs/{job_id}")).json()
                except (httpx.HTTPError, ValueError):
                    await asyncio.sleep(0.1)
                    break
                if job.get("status") in ("queued", "in_progress"):
                    await asyncio.sleep(0.05)
                    break
                found[job_id] = job
    return found


def killing(gateways: list[Gateway], kills: int, over: threading.Event) -> int:
    """Kill one gateway after the other, and start it again."""
    number = 0
    while number < kills and not over.wait(random.uniform(0.5, 1.5)):
        gateway = random.choice(gateways)
        gateway.kill()
        number += 1
        if over.wait(random.uniform(0, 2)):
            pass
        gateway.start()
    return number


async def check(gateway: Gateway, jobs: dict[str, dict[str, Any]]) -> Counter[str]:
    """Look whether each ended once, its file is what it should be, and it is paid once."""
    found: Counter[str] = Counter()
    paid: Counter[str] = Counter()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        for job_id, job in jobs.items():
            found[job["status"]] += 1
            found["calls"] += job["attempts"]
            events = (await http.get(f"{gateway.url}/v1/jobs/{job_id}/events")).text
            ends = sum(f'"status": "{state}"' in events for state in ("completed", "failed", "cancelled"))
            found["ended more than once"] += events.count('"status": "completed"') + ends - 2 if ends else 1
            if job["status"] == "completed":
                content = (await http.get(f"{gateway.url}/v1/jobs/{job_id}/content")).content
                found["missing or torn"] += hashlib.sha256(content).hexdigest() != job["outputs"][0]["sha256"]
        totals = (await http.get(f"{gateway.url}/v1/usage/summary", params={"bucket_width": "all"})).json()["data"]
    for total in (result for bucket in totals for result in bucket["results"]):
        paid.update(total["units"])
    made = Counter(job["kind"] for job in jobs.values() if job["status"] == "completed")
    found["paid: meshes"], found["made: meshes"] = round(paid["meshes"]), made["mesh"]
    found["paid: frames"], found["made: frames"] = round(paid["frames"]), 9 * made["video"]
    return found


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--chaos", action="store_true")
    options.add_argument("--seconds", type=float, default=15)
    options.add_argument("--postgres", default="")
    asked = options.parse_args()
    worker = serve(Worker(asked.seconds if asked.chaos else 0))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"ATELIER_DATABASE_URL": asked.postgres} if asked.postgres else {}
        gateways = [Gateway(worker, Path(folder), settings) for _ in range(2 if asked.chaos else 1)]
        try:
            (chaos if asked.chaos else capacity)(gateways, asked)
        finally:
            for gateway in gateways:
                gateway.kill()


def capacity(gateways: list[Gateway], asked: argparse.Namespace) -> None:
    """Print jobs a second, accepted and done."""
    before = gateways[0].memory()
    cpu = psutil.Process(gateways[0].process.pid)
    began, used = time.perf_counter(), sum(cpu.cpu_times()[:2])
    ids = asyncio.run(accept(gateways, asked.jobs))
    accepted = time.perf_counter() - began
    jobs = asyncio.run(jobs_of(gateways, ids))
    seconds = time.perf_counter() - began
    rate, cost = asked.jobs / seconds, (sum(cpu.cpu_times()[:2]) - used) / asked.jobs * 1000
    print(f"{asked.jobs} jobs: accepted in {accepted:.1f} s, done in {seconds:.1f} s: {rate:.1f} jobs/s")  # noqa: T201
    print(f"CPU {cost:.1f} ms a job; memory {before:.0f} -> {gateways[0].memory():.0f} MiB")  # noqa: T201
    print(Counter(job["status"] for job in jobs.values()))  # noqa: T201


def chaos(gateways: list[Gateway], asked: argparse.Namespace) -> None:
    """Print what became of the jobs."""
    over = threading.Event()
    numbers: list[int] = []
    killer = threading.Thread(target=lambda: numbers.append(killing(gateways, asked.kills, over)))
    killer.start()
    began = time.perf_counter()
    ids = asyncio.run(accept(gateways, asked.jobs))
    jobs = asyncio.run(jobs_of(gateways, ids))
    seconds = time.perf_counter() - began
    over.set()
    killer.join()
    time.sleep(80)  # until rows that killed gateways had not written are made good
    found = asyncio.run(check(gateways[0], jobs))
    print(f"{len(set(ids))} jobs, {numbers[0]} kills, {seconds:.0f} s: {dict(found)}")  # noqa: T201
    is_whole = len(set(ids)) == asked.jobs and not found["ended more than once"] and not found["missing or torn"]
    if not is_whole or any(found[f"paid: {unit}"] != found[f"made: {unit}"] for unit in ("meshes", "frames")):
        sys.exit("a job was lost, ended twice, has no whole file, or was not paid once")


if __name__ == "__main__":
    main()
