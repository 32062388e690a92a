"""What is kept of jobs, and for how long: row and files together, whoever dies and whatever is full."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.gateway.conftest import LONG, Gateway, Workers, error_of, served
from tests.gateway.processes import running
from tests.gateway.test_jobs import MESH, PROMPT, a_file, create, ended, sent, until, works

Start = Callable[..., Gateway]
MAX_FILE_BYTES = 6_000_000
TOO_LONG = MAX_FILE_BYTES + 1


def ask(data_dir: Path, statement: str) -> list[Any]:
    """Ask the database itself."""
    with closing(sqlite3.connect(data_dir / "atelier.sqlite3", timeout=LONG)) as database, database:
        return database.execute(statement).fetchall()


def kept(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "artefacts").glob("job_*"))


def is_gone(client: httpx.Client, data_dir: Path, job_id: str) -> None:
    """Wait until neither row nor file of a job is left."""
    page = f"/v1/jobs/{job_id}"
    while client.get(page).status_code != 404 or job_id in kept(data_dir):
        pass
    while ask(data_dir, f"SELECT id FROM jobs WHERE id = '{job_id}'"):  # noqa: S608 - our own id
        client.get(page)


def test_when_its_time_is_over_a_job_goes_with_its_files(start: Start, workers: Workers, tmp_path: Path) -> None:
    works(workers)
    gateway = start(job_retention_days=3)
    old, new = (ended(gateway.client, create(gateway.client)["id"]) for _ in range(2))
    gateway.close()
    ask(tmp_path, f"UPDATE jobs SET expires_at = '2020-01-01' WHERE id = '{old['id']}'")  # noqa: S608 - our own id
    client = start().client
    is_gone(client, tmp_path, old["id"])

    assert new["expires_at"] - new["completed_at"] == 3 * 24 * 3600
    assert kept(tmp_path) == [new["id"]]
    assert client.get(f"/v1/jobs/{new['id']}/content").content == b"glTF"
    assert ask(tmp_path, "SELECT count(*) FROM job_events WHERE job_seq NOT IN (SELECT seq FROM jobs)") == [(0,)]


def test_however_many_they_are_all_go_whose_time_is_over(start: Start, workers: Workers, tmp_path: Path) -> None:
    works(workers)
    gateway = start()
    ended(gateway.client, create(gateway.client)["id"])
    gateway.close()
    fields = ", ".join(row[1] for row in ask(tmp_path, "PRAGMA table_info(jobs)") if row[1] not in ("seq", "id"))
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 350)"
    ask(tmp_path, f"INSERT INTO jobs (id, {fields}) {numbers} SELECT 'job_' || i, {fields} FROM jobs, n")  # noqa: S608
    ask(tmp_path, "UPDATE jobs SET expires_at = '2020-01-01'")
    client = start().client
    give_up_at = time.monotonic() + LONG
    while ask(tmp_path, "SELECT id FROM jobs"):
        client.get("/livez")
        assert time.monotonic() < give_up_at

    assert kept(tmp_path) == []


def test_what_was_uploaded_for_a_job_that_never_came_to_be_is_deleted(
    start: Start, workers: Workers, tmp_path: Path
) -> None:
    works(workers)
    gateway = start()
    film = gateway.client.post("/v1/videos", files={"input_reference": ("a.png", b"a picture")}).json()["id"]
    ended(gateway.client, film)
    gateway.close()
    left = tmp_path / "artefacts" / "job_0123" / "0123"
    left.parent.mkdir()
    left.write_bytes(b"half an upload")
    ask(tmp_path, "INSERT INTO uploads (job_id, accepted_by) VALUES ('job_0123', 'dead')")
    client = start().client
    while ask(tmp_path, "SELECT * FROM uploads"):
        client.get("/v1/jobs")

    assert kept(tmp_path) == [film]
    assert client.get(f"/v1/jobs/{film}/content").status_code == 200


def test_a_refused_job_leaves_no_upload(gateway: Gateway, workers: Workers, tmp_path: Path) -> None:
    works(workers)
    named = {"idempotency-key": "mine"}
    picture = {"input_reference": ("a.png", b"a picture")}
    first = gateway.client.post("/v1/videos", files=picture, headers=named).json()["id"]
    other = gateway.client.post("/v1/videos", files={"input_reference": ("a.png", b"another")}, headers=named)
    ended(gateway.client, first)

    assert other.status_code == 409
    assert kept(tmp_path) == [first]
    assert ask(tmp_path, "SELECT * FROM uploads") == []


class Maker:
    """A worker whose meshes are as large as their seed says."""

    async def answer(self, request: Request) -> Response:
        if request.method == "GET":
            return Response()
        body = await request.json()
        return StreamingResponse(self.pieces(bytes(body["seed"])), media_type="text/event-stream")

    async def pieces(self, content: bytes) -> AsyncGenerator[bytes]:
        yield sent("started") + a_file("glb", "model/gltf-binary", content) + sent("done", usage={"meshes": 1})


def test_a_full_disk_fails_the_job_that_meets_it_and_no_other(tmp_path: Path) -> None:
    app = Starlette(routes=[Route("/{path:path}", Maker().answer, methods=["GET", "POST"])])
    with (
        served(app) as worker,
        running(tmp_path, worker, max_file_bytes=str(MAX_FILE_BYTES)) as process,
        httpx.Client(base_url=process.url, timeout=LONG, trust_env=False) as client,
    ):
        ids = [create(client, MESH, {**PROMPT, "seed": seed})["id"] for seed in (1000, TOO_LONG, 2000)]
        jobs = [ended(client, job_id) for job_id in ids]
        contents = [client.get(f"/v1/jobs/{job_id}/content") for job_id in ids]
        process.process.kill()

    assert [job["status"] for job in jobs] == ["completed", "failed", "completed"]
    assert jobs[1]["error"]["code"] == "storage_full"
    assert "no room left" in jobs[1]["error"]["message"]
    assert [answer.status_code for answer in contents] == [200, 409, 200]
    assert sha256(contents[2].content).hexdigest() == jobs[2]["outputs"][0]["sha256"]
    assert kept(tmp_path) == sorted([ids[0], ids[2]])
    assert list((tmp_path / "artefacts" / ".drafts").glob("*")) == []


def test_a_job_that_a_living_gateway_holds_and_does_not_know_of_goes_on(
    start: Start, workers: Workers, tmp_path: Path
) -> None:
    works(workers)
    idle = start(job_concurrency_by_task={"mesh": 0})
    job_id = create(idle.client)["id"]
    ask(tmp_path, "UPDATE jobs SET state = 'in_progress', attempt = 1, executor = (SELECT id FROM gateways)")
    busy = start()

    assert ended(busy.client, job_id)["attempts"] == 2
    assert ended(idle.client, job_id)["status"] == "completed"


def test_a_job_that_was_taken_from_us_and_comes_back_is_worked_on_once(
    gateway: Gateway, workers: Workers, tmp_path: Path
) -> None:
    works(workers, Future())
    job_id = create(gateway.client)["id"]
    until(gateway.client, job_id, lambda job: bool(job["step_progress"]))
    ask(tmp_path, "UPDATE jobs SET executor = ''")  # as others do who take us for dead
    create(gateway.client)  # and we look for jobs
    until(gateway.client, job_id, lambda job: job["attempts"] == 2 and bool(job["step_progress"]))

    assert workers.streams[0].is_closed.wait(LONG)
    gateway.client.post(f"/v1/jobs/{job_id}/cancel")
    again = next(each for each in workers.requests if each.headers["x-atelier-attempt"] == "2")
    assert workers.streams[workers.requests.index(again)].is_closed.is_set()


def test_a_row_that_cannot_be_read_holds_up_no_other(start: Start, workers: Workers, tmp_path: Path) -> None:
    works(workers)
    broken = create(start(job_concurrency_by_task={"mesh": 0}).client)["id"]
    ask(tmp_path, "UPDATE jobs SET steps = '[{}]'")  # as a version does that knows other steps
    busy = start(job_concurrency=1)
    job_id = create(busy.client)["id"]
    ended(busy.client, job_id)
    unread = busy.client.get(f"/v1/jobs/{broken}")

    assert (unread.status_code, error_of(unread)["code"]) == (503, "job_unreadable")
    assert [each["id"] for each in busy.client.get("/v1/jobs").json()["data"]] == [job_id]
    assert ask(tmp_path, "SELECT state, executor FROM jobs ORDER BY seq")[0] in {("queued", ""), ("in_progress", "")}


def test_at_another_gateway_a_job_is_followed_and_cancelled(start: Start, workers: Workers) -> None:
    works(workers, Future())
    busy, idle = start(), start(job_concurrency_by_task={"mesh": 0})
    job_id = create(busy.client)["id"]
    until(idle.client, job_id, lambda job: job["step_progress"] == {"step": 1, "steps": 4, "eta_seconds": 2.0})
    with idle.client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        lines = stream.iter_lines()
        while "event: preview" not in next(lines):
            pass
        cancelled = idle.new_client().post(f"/v1/jobs/{job_id}/cancel").json()
        told = list(lines)

    assert cancelled["status"] == "cancelled"
    assert any('"cancelled"' in line for line in told)
    assert told[-2:] == ["data: [DONE]", ""]
    assert workers.streams[0].is_closed.wait(LONG)


def test_while_the_database_fails_jobs_are_to_be_asked_for_again(
    gateway: Gateway, workers: Workers, tmp_path: Path
) -> None:
    works(workers)
    job_id = ended(gateway.client, create(gateway.client)["id"])["id"]
    ask(tmp_path, "ALTER TABLE jobs RENAME TO away")
    asked = [gateway.client.get(f"/v1/jobs/{job_id}"), gateway.client.post(MESH, json=PROMPT)]
    ask(tmp_path, "ALTER TABLE away RENAME TO jobs")

    for answer in asked:
        assert (answer.status_code, error_of(answer)["code"]) == (503, "jobs_unavailable")
        assert answer.headers["x-should-retry"] == "true"
    assert ended(gateway.client, create(gateway.client)["id"])["status"] == "completed"


def test_a_job_that_is_deleted_while_it_is_made_leaves_nothing_to_be_seen(
    gateway: Gateway, workers: Workers, tmp_path: Path
) -> None:
    workers.streams_once(sent("started") + sent("progress", step=1, steps=2), never())
    job_id = create(gateway.client)["id"]
    until(gateway.client, job_id, lambda job: bool(job["step_progress"]))
    deleted = gateway.client.delete(f"/v1/3d/{job_id}")

    assert deleted.json() == {"id": job_id, "object": "mesh.deleted", "deleted": True}
    assert workers.streams[0].is_closed.is_set()
    assert kept(tmp_path) == []
    for path in (f"/v1/jobs/{job_id}", f"/v1/3d/{job_id}", f"/v1/jobs/{job_id}/content", f"/v1/jobs/{job_id}/events"):
        assert gateway.client.get(path).status_code == 404
    assert gateway.client.get("/v1/jobs").json()["data"] == []


async def never() -> None:
    """Wait for what does not come."""
    await asyncio.Event().wait()
