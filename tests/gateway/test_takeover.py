"""Real gateways that die or are paused: their jobs go on at others, and each ends once. On SQLite and on Postgres."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.gateway.conftest import LONG, served
from tests.gateway.processes import Process, running
from tests.gateway.servers import postgres_server
from tests.gateway.test_jobs import MESH, PROMPT, a_file, sent

NUM_GATEWAYS = 2
ROOT = Path(__file__).parents[2]


class Slow:
    """A worker whose calls end when the test says so; knows who has hung up."""

    def __init__(self) -> None:
        self.is_open = False
        self.attempts: list[str] = []

    async def answer(self, request: Request) -> Response:
        if request.method == "GET":
            return Response()
        self.attempts.append(request.headers["x-atelier-attempt"])
        kind = ("audio", "audio/wav") if "audio" in request.url.path else ("glb", "model/gltf-binary")
        return StreamingResponse(self.pieces(await request.json(), *kind), media_type="text/event-stream")

    async def pieces(self, body: dict[str, object], variant: str, media_type: str) -> AsyncGenerator[bytes, None]:
        yield sent("started")
        while not self.is_open:
            yield sent("progress", step=1, steps=2)
            await asyncio.sleep(0.05)
        yield a_file(variant, media_type, json.dumps(body["seed"]).encode()) + sent("done", usage={"meshes": 1})


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'atelier.sqlite3'}"
    else:
        with postgres_server() as url:
            yield url


@contextmanager
def gateways(folder: Path, database: str) -> Iterator[tuple[Slow, list[Process]]]:
    worker = Slow()
    app = Starlette(routes=[Route("/{path:path}", worker.answer, methods=["GET", "POST"])])
    with ExitStack() as stack:
        url = stack.enter_context(served(app))
        settings = {"ATELIER_DATABASE_URL": database, "ATELIER_INTERNAL_TOKEN": "of this test"}
        yield worker, [stack.enter_context(running(folder, url, **settings)) for _ in range(NUM_GATEWAYS)]
        worker.is_open = True


def shown(process: Process, job_id: str) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{process.url}/v1/jobs/{job_id}", trust_env=False, timeout=LONG).json()
    return found


def until(process: Process, job_id: str, **wanted: object) -> dict[str, object]:
    give_up_at = time.monotonic() + 2 * LONG
    while True:
        job = shown(process, job_id)
        if wanted.items() <= job.items():
            return job
        assert time.monotonic() < give_up_at, job
        time.sleep(0.05)


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "paused"])
def test_a_gateway_that_is_gone_leaves_its_jobs_to_another(
    tmp_path: Path, database: str, number: signal.Signals
) -> None:
    with gateways(tmp_path, database) as (worker, (first, second)):
        second.signal(signal.SIGSTOP)  # so that the first takes it
        job_id = httpx.post(f"{first.url}{MESH}", json=PROMPT, trust_env=False, timeout=LONG).json()["id"]
        until(first, job_id, attempts=1)
        first.signal(number)
        second.signal(signal.SIGCONT)
        until(second, job_id, attempts=2)
        worker.is_open = True
        job = until(second, job_id, status="completed")
        if number == signal.SIGSTOP:
            first.signal(signal.SIGCONT)
            assert shown(first, job_id) == job
        text = httpx.get(f"{second.url}/v1/jobs/{job_id}/events", trust_env=False, timeout=LONG).text
        content = httpx.get(f"{second.url}/v1/3d/{job_id}/content", trust_env=False, timeout=LONG).content
        rows = httpx.get(f"{second.url}/v1/usage?limit=1000", trust_env=False, timeout=LONG).json()["data"]
        totals = httpx.get(f"{second.url}/v1/usage/summary", trust_env=False, timeout=LONG).json()["data"]
        for process in (first, second):
            process.process.kill()

    assert worker.attempts == ["1", "2"]
    assert text.count('"status": "completed"') == 1
    assert job["outputs"][0]["sha256"] == sha256(content).hexdigest()  # type: ignore[index]
    assert job["usage"] == {"meshes": 1}
    assert [row["units"] for row in rows if row["units"]] == [{"meshes": 1}]
    assert sum(each["units"].get("meshes", 0) for bucket in totals for each in bucket["results"]) == 1


@pytest.mark.live
def test_speech_can_be_heard_at_every_gateway(tmp_path: Path, database: str) -> None:
    """At the one that works on it while it is made; at any other when it is."""
    with gateways(tmp_path, database) as (worker, processes), ThreadPoolExecutor() as threads:
        first = processes[0].url
        asked: dict[str, Any] = {
            "json": {"input": "hello", "seed": 7},
            "headers": {"prefer": "respond-async"},
            "timeout": LONG,
        }
        job_id = httpx.post(f"{first}/v1/audio/speech", trust_env=False, **asked).json()["id"]
        hear = partial(httpx.get, trust_env=False, timeout=LONG)
        heard = [threads.submit(hear, f"{each.url}/v1/jobs/{job_id}/sound") for each in processes]
        worker.is_open = True

        assert [each.result().content for each in heard] == [b"7"] * NUM_GATEWAYS
        assert {each.result().headers["content-type"] for each in heard} == {"audio/wav"}


@pytest.mark.fresh
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_twenty_kills_lose_and_repeat_nothing(database: str) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--jobs", "200", "--kills", "20"]
    asked = ["--postgres", database] if database.startswith("postgresql") else []

    subprocess.run([*command, *asked], cwd=ROOT, check=True)
