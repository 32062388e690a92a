"""What becomes of jobs when processes are killed: `python -m benchmarks.chaos`, over the tiny checkpoints.

`atelier up` and a second gateway, which share a database and files. While jobs of all modalities and chains come in,
gateways and workers are ended by SIGKILL, one after the other, at random. Then it is looked whether each accepted job
has ended once, has its whole files, and is in the usage log for what it has made: neither more nor less.
`--postgres URL` (`postgresql+asyncpg://…`, an empty database) goes before SQLite.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.jobs import free_port

TASKS = ("text", "audio", "image", "video", "mesh")
CHAT = {"messages": [{"role": "user", "content": "a scene"}], "max_tokens": 8}
PICTURE = {"num_inference_steps": 4, "size": "64x64"}
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", CHAT),
    ("/v1/audio/speech", {"input": "Good evening.", "response_format": "wav"}),
    ("/v1/images/generations", {**PICTURE, "prompt": "a boat"}),
    ("/v1/videos", {"prompt": "a boat", "num_frames": 5, "num_inference_steps": 2}),
    ("/v1/3d/generations", {"prompt": "a chair", "num_inference_steps": 2, "grid_size": 16}),
    (
        "/v1/jobs",
        {
            "steps": [
                {"route": "/v1/chat/completions", "body": CHAT},
                {"route": "/v1/images/generations", "body": PICTURE},
                {"route": "/v1/videos", "body": {"num_frames": 4, "num_inference_steps": 2}},
            ]
        },
    ),
)
UNITS = ("tokens", "audio_seconds", "pixel_steps", "frames", "meshes")
ENDS = ("completed", "failed", "cancelled")
PAUSE = (2.0, 6.0)  # seconds between two kills
READY_SECONDS, ENDED_SECONDS, PAID_SECONDS = 180, 900, 90  # that are waited at most


class System:
    """`atelier up`, and a second gateway beside it."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        ports = {name: str(free_port()) for name in ("GATEWAY", "SECOND", "UI", *map(str.upper, TASKS))}
        own = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
        common = {**own, **settings, "ATELIER_DATA_DIR": str(folder), "ATELIER_INTERNAL_TOKEN": "of this run"}
        up = {f"ATELIER_{task.upper()}_PORT": ports[task.upper()] for task in TASKS}
        urls = {f"ATELIER_{task.upper()}_URL": f"http://127.0.0.1:{ports[task.upper()]}" for task in TASKS}
        self._second = {**common, **urls, "ATELIER_PORT": ports["SECOND"]}
        self.gateways = [f"http://127.0.0.1:{ports[name]}" for name in ("GATEWAY", "SECOND")]
        with (folder / "up.log").open("wb") as log:
            self._up = subprocess.Popen(
                [sys.executable, "-m", "cli", "up"],
                env={**common, **up, "ATELIER_PORT": ports["GATEWAY"], "ATELIER_UI_PORT": ports["UI"]},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(READY_SECONDS, lambda: is_success(f"{self.gateways[0]}/readyz"))
        self._start()
        until(READY_SECONDS, lambda: is_success(f"{self.gateways[1]}/readyz"))

    def _start(self) -> None:
        self.second = subprocess.Popen([sys.executable, "-m", "gateway"], env=self._second, stderr=subprocess.DEVNULL)

    def kill_one(self) -> str:
        """End a gateway or a worker, whichever it hits; what it was."""
        found = [self.second.pid, *(child.pid for child in psutil.Process(self._up.pid).children(recursive=True))]
        names = {pid: name for pid in found if (name := name_of(pid))}
        pid = random.choice(sorted(names))
        os.kill(pid, signal.SIGKILL)
        if pid == self.second.pid:
            self.second.wait()
            self._start()
        return names[pid]

    def close(self) -> None:
        """End all."""
        self.second.kill()
        self.second.wait()
        self._up.send_signal(signal.SIGINT)
        self._up.wait()


def name_of(pid: int) -> str:
    """`gateway`, or which service a process is of; empty: it is neither."""
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return ""
    return next((part.rpartition(":")[2] for part in command if part.startswith("services.")), "") or (
        "gateway" if command[1:3] == ["-m", "gateway"] else ""
    )


def is_success(url: str) -> bool:
    """Whether a GET there is answered well."""
    try:
        return httpx.get(url, trust_env=False, timeout=10).is_success
    except httpx.HTTPError:
        return False


def until(seconds: float, is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    give_up_at = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > give_up_at:
            sys.exit("that never came true")
        time.sleep(0.2)


async def accepted(http: httpx.AsyncClient, gateways: list[str], number: int) -> str:
    """Have a job accepted by whichever gateway lives; its id."""
    path, body = ASKED[number % len(ASKED)]
    headers = {"prefer": "respond-async", "idempotency-key": f"job-{number}"}
    while True:
        try:
            answer = await http.post(f"{random.choice(gateways)}{path}", json=body, headers=headers)
        except httpx.HTTPError:
            await asyncio.sleep(0.2)
            continue
        if answer.is_success:
            return str(answer.json()["id"])
        if answer.status_code < 500:
            sys.exit(answer.text)
        await asyncio.sleep(0.2)


async def asking(system: System, num_jobs: int, num_kills: int) -> tuple[list[str], Counter[str]]:
    """Have jobs accepted, evenly, as long as it is killed; their ids, and what was hit."""
    pause = num_kills * sum(PAUSE) / 2 / num_jobs
    hit: Counter[str] = Counter()

    async def killing() -> None:
        for _ in range(num_kills):
            await asyncio.sleep(random.uniform(*PAUSE))
            hit[await asyncio.to_thread(system.kill_one)] += 1

    async def one(http: httpx.AsyncClient, number: int) -> str:
        await asyncio.sleep(number * pause)
        return await accepted(http, system.gateways, number)

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        ids, _ = await asyncio.gather(asyncio.gather(*(one(http, each) for each in range(num_jobs))), killing())
    return ids, hit


class Look:
    """What callers see afterwards, at the gateway that is not of `atelier up`."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def job(self, job_id: str) -> dict[str, Any]:
        """A job."""
        found: dict[str, Any] = self._http.get(f"/v1/jobs/{job_id}").json()
        return found

    def num_ends(self, job_id: str) -> int:
        """How often it is told that it has ended."""
        events = self._http.get(f"/v1/jobs/{job_id}/events").text
        told = [json.loads(line[6:]) for line in events.split("\n") if line.startswith("data: {")]
        return sum(each.get("status") in ENDS for each in told)

    def num_torn(self, job: dict[str, Any]) -> int:
        """Files that are not what they should be."""
        found = 0
        for output in job["outputs"]:
            content = self._http.get(output["url"]).content
            found += hashlib.sha256(content).hexdigest() != output["sha256"]
        return found

    def paid(self) -> Counter[str]:
        """The units in the usage log."""
        found: Counter[str] = Counter()
        buckets = self._http.get("/v1/usage/summary", params={"bucket_width": "all"}).json()["data"]
        for result in (result for bucket in buckets for result in bucket["results"]):
            found.update({unit: result["units"].get(unit, 0) for unit in UNITS})
        return found


def main() -> None:
    """Kill, look, and fail where a promise is broken."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--postgres", default="")
    asked = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its end"))  # and ends what it has started
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder), {"ATELIER_DATABASE_URL": asked.postgres} if asked.postgres else {})
        try:
            run(system, asked.jobs, asked.kills)
        finally:
            system.close()


def run(system: System, num_jobs: int, num_kills: int) -> None:
    """Print what became of the jobs."""
    began = time.monotonic()
    ids, hit = asyncio.run(asking(system, num_jobs, num_kills))
    until(READY_SECONDS, lambda: is_success(f"{system.gateways[1]}/livez"))
    look = Look(system.gateways[1])
    for job_id in ids:
        until(ENDED_SECONDS, lambda job_id=job_id: look.job(job_id)["status"] in ENDS)  # type: ignore[misc]
    seconds = time.monotonic() - began
    jobs = [look.job(job_id) for job_id in ids]
    found = Counter(job["status"] for job in jobs)
    print(f"{len(set(ids))} jobs in {seconds:.0f} s, {sum(hit.values())} kills: {dict(hit)}")  # noqa: T201
    print(f"{dict(found)}, {sum(job['attempts'] for job in jobs)} calls")  # noqa: T201
    for job in jobs:
        if job["error"]:
            print(job["kind"], job["attempts"], job["error"]["message"])  # noqa: T201
    made: Counter[str] = Counter()
    for job in jobs:
        made.update({unit: job["usage"].get(unit, 0) for unit in UNITS})
    until(PAID_SECONDS, lambda: all(abs(look.paid()[unit] - made[unit]) < 1e-6 * (1 + made[unit]) for unit in UNITS))
    print(f"made and paid: { {unit: round(made[unit], 3) for unit in UNITS} }")  # noqa: T201
    num_ends = [look.num_ends(job_id) for job_id in ids]
    num_torn = sum(look.num_torn(job) for job in jobs if job["status"] == "completed")
    print(f"ended once: {num_ends.count(1)}; missing or torn: {num_torn}")  # noqa: T201
    if len(set(ids)) != num_jobs or num_ends.count(1) != num_jobs or num_torn or not found["completed"]:
        sys.exit("a job was lost, ended twice, or has no whole file")


if __name__ == "__main__":
    main()
