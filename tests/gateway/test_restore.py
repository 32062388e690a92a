"""A backup that is made while jobs run, and what comes of it where all else is lost. On SQLite and on Postgres."""

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import make_url
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.gateway.conftest import LONG, served
from tests.gateway.processes import running
from tests.gateway.servers import postgres_program, postgres_server
from tests.gateway.test_jobs import MESH, a_file, sent

ROOT = Path(__file__).parents[2]
SLOW = "slow"
ENDED = {"completed", "failed", "cancelled"}


@dataclass
class Sculptor:
    """A worker that is quick, but with what is slow it waits for the gate."""

    is_open: bool = False

    async def answer(self, request: Request) -> Response:
        if request.method == "GET":
            return Response()
        return StreamingResponse(self.pieces(await request.json()), media_type="text/event-stream")

    async def pieces(self, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        yield sent("started")
        while body["prompt"] == SLOW and not self.is_open:
            yield sent("progress", step=1, steps=2)
            await asyncio.sleep(0.05)
        yield a_file("glb", "model/gltf-binary", json.dumps(body["seed"]).encode()) + sent("done", usage={"meshes": 1})


@dataclass
class Site:
    """Where a gateway keeps what it has."""

    folder: Path
    database: str

    @contextmanager
    def serving(self, worker: str) -> Iterator["Site"]:
        settings = {
            "ATELIER_DATABASE_URL": self.database,
            "ATELIER_INTERNAL_TOKEN": "of this test",
            "ATELIER_ADMIN_KEY_FILE": str(self.folder / "admin.key"),
        }
        with running(self.folder, worker, **settings) as process:
            self.url = process.url
            yield self
            process.process.kill()  # as if the machine were lost

    def ask(self, method: str, path: str, key: str, **options: Any) -> httpx.Response:
        headers = {"x-api-key": key}
        return httpx.request(method, self.url + path, headers=headers, trust_env=False, timeout=LONG, **options)

    def jobs(self, key: str) -> dict[str, dict[str, Any]]:
        page = self.ask("GET", "/v1/jobs?limit=100", key).json()
        assert not page["has_more"]
        return {job["id"]: job for job in page["data"]}

    def until_ended(self, key: str, *job_ids: str) -> dict[str, dict[str, Any]]:
        give_up_at = time.monotonic() + 3 * LONG
        while True:
            jobs = self.jobs(key)
            if all(job["status"] in ENDED for job_id, job in jobs.items() if not job_ids or job_id in job_ids):
                return jobs
            assert time.monotonic() < give_up_at, jobs
            time.sleep(0.1)

    def compare(self, *options: str) -> list[str]:
        """What `python -m gateway.jobs` says."""
        settings = {"ATELIER_DATABASE_URL": self.database, "ATELIER_DATA_DIR": str(self.folder), "PATH": ""}
        command = [sys.executable, "-X", "faulthandler", "-m", "gateway.jobs", *options]
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@dataclass
class Load:
    """Somebody who has meshes made all the time."""

    site: Site
    key: str
    ids: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def order(self, prompt: str = "a chair") -> str:
        answer = self.site.ask("POST", MESH, self.key, json={"prompt": prompt})
        assert answer.status_code == 202, answer.text
        self.ids.append(answer.json()["id"])
        return self.ids[-1]

    @contextmanager
    def going_on(self) -> Iterator[None]:
        def work() -> None:
            while not self.is_over.wait(0.1):
                self.order()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            self.is_over.set()
            thread.join()


def plain(url: str) -> str:
    """As Postgres' own programs want it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def back_up_database(site: Site, backup: Path) -> None:
    """As docs/operations.md says."""
    if site.database.startswith("sqlite"):
        with closing(sqlite3.connect(site.folder / "atelier.sqlite3")) as database:
            database.execute(f"VACUUM INTO '{backup / 'atelier.sqlite3'}'")
    else:
        command = [postgres_program("pg_dump"), "-Fc", f"--file={backup / 'atelier.dump'}", plain(site.database)]
        subprocess.run(command, check=True)


def back_up_files(site: Site, backup: Path) -> None:
    shutil.copytree(site.folder / "artefacts", backup / "artefacts", ignore=shutil.ignore_patterns(".drafts"))
    for name in ("signing.key", "admin.key"):
        shutil.copy2(site.folder / name, backup)


@contextmanager
def restored(backup: Path, folder: Path, kind: str) -> Iterator[Site]:
    shutil.copytree(backup, folder)
    if kind == "sqlite":
        yield Site(folder, f"sqlite+aiosqlite:///{folder / 'atelier.sqlite3'}")
        return
    with postgres_server() as url:
        restore = [postgres_program("pg_restore"), "--no-owner", f"--dbname={plain(url)}", str(backup / "atelier.dump")]
        subprocess.run(restore, check=True)
        yield Site(folder, url)


@contextmanager
def new_site(folder: Path, kind: str) -> Iterator[Site]:
    folder.mkdir()
    if kind == "sqlite":
        yield Site(folder, f"sqlite+aiosqlite:///{folder / 'atelier.sqlite3'}")
    else:
        with postgres_server() as url:
            yield Site(folder, url)


def meshes_of(buckets: list[dict[str, Any]]) -> int:
    return sum(int(each["units"].get("meshes", 0)) for bucket in buckets for each in bucket["results"])


@pytest.mark.live
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_was_backed_up_under_load_is_whole_when_all_else_is_lost(tmp_path: Path, kind: str) -> None:
    worker, backup = Sculptor(), tmp_path / "backup"
    backup.mkdir()
    app = Starlette(routes=[Route("/{path:path}", worker.answer, methods=["GET", "POST"])])
    with ExitStack() as stack:
        worker_url = stack.enter_context(served(app))
        with new_site(tmp_path / "lost", kind) as lost, lost.serving(worker_url):
            admin = (lost.folder / "admin.key").read_text(encoding="utf-8").strip()
            grant = {"owner": "ada", "scopes": ["mesh"], "budgets": {"month": {"meshes": 1000}}}
            made = lost.ask("POST", "/v1/keys", admin, json=grant).json()
            load = Load(lost, made["key"])
            slow = load.order(SLOW)
            early = load.order()
            lost.until_ended(load.key, early)
            link = lost.ask("POST", "/v1/signed_urls", load.key, json={"path": f"/v1/3d/{early}/content"}).json()["url"]
            with load.going_on():
                back_up_database(lost, backup)
                late = load.order()
                lost.until_ended(load.key, late)
                assert lost.ask("DELETE", f"/v1/3d/{early}", load.key).status_code == 200
                lost.until_ended(load.key, load.order())
                back_up_files(lost, backup)
        shutil.rmtree(tmp_path / "lost")

        worker.is_open = True
        site = stack.enter_context(restored(backup, tmp_path / "new", kind))
        stack.enter_context(site.serving(worker_url))
        jobs = site.until_ended(load.key)

        assert {slow, early} <= jobs.keys()
        assert late not in jobs
        assert {job["status"] for job in jobs.values()} == {"completed"}
        assert jobs[slow]["attempts"] == 2
        for job_id in jobs.keys() - {early}:
            content = site.ask("GET", f"/v1/3d/{job_id}/content", load.key)
            assert sha256(content.content).hexdigest() == jobs[job_id]["outputs"][0]["sha256"]
        gone = httpx.get(site.url + link, trust_env=False, timeout=LONG)  # the link is good, and the file was deleted
        assert (gone.status_code, gone.json()["error"]["message"]) == (404, "this file is not kept any more")

        give_up_at = time.monotonic() + LONG  # what a job made is written down a little after its end
        while meshes_of(site.ask("GET", "/v1/usage/summary", admin).json()["data"]) != len(jobs):
            assert time.monotonic() < give_up_at
        used = site.ask("GET", f"/v1/keys/{made['id']}", admin).json()["used"]
        assert used == {"month": {"meshes": len(jobs)}}

        orphans = {path.name for path in (site.folder / "artefacts").iterdir() if path.name != ".drafts"} - jobs.keys()
        assert late in orphans
        said = site.compare()
        assert said[0].startswith(f"files of {len(orphans)} jobs that the database does not know: ")
        assert said[1:] == ["jobs that lack files: 1", f"  {early}"]
        with pytest.raises(AssertionError, match="this database knows none"):  # else all of them would be gone
            Site(site.folder, f"sqlite+aiosqlite:///{tmp_path / 'other.sqlite3'}").compare("--delete")
        site.compare("--delete")
        left = {path.name for path in (site.folder / "artefacts").iterdir() if path.name != ".drafts"}
        assert left == jobs.keys() - {early}
