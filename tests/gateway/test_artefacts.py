"""Artefacts, in a folder and in an S3: whole or not there, whoever is killed, and served in parts."""

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.artefacts.download import download
from gateway.artefacts.store import DRAFTS, Artefact, Artefacts
from gateway.errors import (
    ArtefactsUnavailable,
    GatewayError,
    Misconfigured,
    NoSuchArtefact,
    render_gateway_error,
)
from tests.gateway.conftest import LONG, Gateway, Workers, served
from tests.gateway.test_jobs import FILM, create, ended, works

pytestmark = pytest.mark.anyio

JOB = "video_0123"
CONTENT = bytes(range(256)) * 4
LARGE = 20_000_000  # bytes: several parts of an upload


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def pieces_of(content: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def whole(artefacts: Artefacts, artefact: Artefact) -> bytes:
    return b"".join([piece async for piece in await artefacts.read(artefact, range(artefact.num_bytes))])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of an S3 with a bucket named "bucket"."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(found[1] for line in server.stderr if (found := re.search(r"Running on (http://\S+)", line)))
        draining = threading.Thread(target=server.stderr.read)
        draining.start()
        assert httpx.put(f"{url}/bucket").status_code == 200
        try:
            yield url
        finally:
            server.kill()
            draining.join()


@pytest.fixture(params=["folder", "s3"])
def artefacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artefacts:
    if request.param == "folder":
        return Artefacts.open("", tmp_path)
    names = {"ENDPOINT_URL": request.getfixturevalue("s3"), "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    for name, value in {**names, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return Artefacts.open(f"s3://bucket/{tmp_path.name}", tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Artefacts:
    return Artefacts.open("", tmp_path)


# --- writing ---


async def test_what_is_put_is_kept_under_its_checksum(artefacts: Artefacts, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()

    kept = await artefacts.put(JOB, pieces_of(CONTENT), "video/mp4")

    assert kept == Artefact(f"{JOB}/{sha256}", sha256, len(CONTENT), "video/mp4")
    assert await whole(artefacts, kept) == CONTENT
    assert [name for name in files(tmp_path) if DRAFTS in name] == []


async def test_the_same_again_is_no_error_and_nothing_is_written_over(artefacts: Artefacts) -> None:
    first, again = [await artefacts.put(JOB, pieces_of(CONTENT), "image/png") for _ in range(2)]
    other = await artefacts.put(JOB, pieces_of(b"other"), "image/png")
    both = await asyncio.gather(*(artefacts.put("twice", pieces_of(CONTENT), "image/png") for _ in range(4)))

    assert first == again != other
    assert len(set(both)) == 1
    assert [await whole(artefacts, one) for one in (first, other, both[0])] == [CONTENT, b"other", CONTENT]


async def test_a_file_is_not_touched_by_the_same_again(folder: Artefacts, tmp_path: Path) -> None:
    kept = await folder.put(JOB, pieces_of(CONTENT), "image/png")
    before = (tmp_path / kept.key).stat()
    await folder.put(JOB, pieces_of(CONTENT), "image/png")

    assert (tmp_path / kept.key).stat() == before


async def test_the_folder_of_drafts_may_go_away_as_the_last_one_in_it_does(
    folder: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, has_gone = os.mkdir, iter([True])

    def mkdir(path: Any, mode: int = 0o777) -> None:
        make(path, mode)
        if next(has_gone, False):  # another's, which is empty by now
            Path(path).rmdir()
            raise FileExistsError(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    kept = await folder.put(JOB, pieces_of(CONTENT), "image/png")

    assert next(has_gone, None) is None
    assert await whole(folder, kept) == CONTENT


async def test_nothing_at_all_can_be_kept(artefacts: Artefacts) -> None:
    kept = await artefacts.put(JOB, pieces_of(b""), "text/plain")

    assert kept.num_bytes == 0
    assert await whole(artefacts, kept) == b""


async def test_memory_does_not_grow_with_the_file(artefacts: Artefacts) -> None:
    tracemalloc.start()
    kept = await artefacts.put(JOB, pieces_of(bytes(LARGE), 10_000), "video/mp4")
    num_bytes = sum([len(piece) async for piece in await artefacts.read(kept, range(LARGE))])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert num_bytes == LARGE
    assert peak < LARGE + 5_000_000  # LARGE is the source's


async def test_what_fails_halfway_leaves_nothing(artefacts: Artefacts, tmp_path: Path) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield CONTENT * 1000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await artefacts.put(JOB, failing(), "video/mp4")

    assert files(tmp_path) == []


async def test_who_gives_up_halfway_leaves_nothing(folder: Artefacts, tmp_path: Path) -> None:
    is_writing = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield CONTENT * 1000
            is_writing.set()

    putting = asyncio.create_task(folder.put(JOB, endless(), "video/mp4"))
    await is_writing.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting

    assert files(tmp_path) == []


@pytest.mark.parametrize("job_id", ["", "..", "a/b", "/etc", ".drafts", "a\n"])
async def test_an_id_cannot_lead_elsewhere(folder: Artefacts, job_id: str) -> None:
    with pytest.raises(ValueError, match="job's id"):
        await folder.put(job_id, pieces_of(CONTENT), "video/mp4")
    with pytest.raises(ValueError, match="job's id"):
        await folder.delete(job_id)


WRITER = """
import asyncio, resource, sys
from pathlib import Path
from gateway.artefacts.store import Artefacts
from gateway.errors import StorageFull

async def endless():
    while True:
        yield bytes(300_000)
        print("written", flush=True)

async def main():
    artefacts = Artefacts.open("", Path(sys.argv[1]))
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    try:
        await artefacts.put("job", endless(), "video/mp4")
    except StorageFull as error:
        print(error.status, error, flush=True)

asyncio.run(main())
"""


def writer(folder: Path, *limit: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), *limit], stdout=subprocess.PIPE, text=True)


def test_a_writer_that_is_killed_leaves_nothing_that_could_be_served(tmp_path: Path) -> None:
    with writer(tmp_path) as killed, writer(tmp_path) as alive:
        assert killed.stdout is not None
        assert alive.stdout is not None
        for process in (killed, alive):
            for _ in range(3):
                assert process.stdout is not None
                assert process.stdout.readline() == "written\n"
        killed.kill()
        killed.stdout.read()
        killed.wait()
        before = files(tmp_path)
        num_swept = Artefacts.open("", tmp_path).sweep()  # opened, it has swept already
        after = files(tmp_path)
        alive.kill()
        alive.stdout.read()

    assert all(name.startswith(DRAFTS) for name in before)
    assert (len(before), num_swept, len(after)) == (2, 0, 1)  # whoever lives, writes on


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with writer(tmp_path, "1000000") as process:
        said, _ = process.communicate(timeout=LONG)

    assert process.returncode == 0
    assert re.fullmatch(r"(written\n)+507 there is no room left for the result.*\n", said)
    assert files(tmp_path) == []


async def test_a_disk_that_takes_nothing_is_an_error_to_come_back_after(tmp_path: Path) -> None:
    artefacts = Artefacts.open("", tmp_path)
    (tmp_path / DRAFTS).touch()  # a file, where drafts are to lie

    with pytest.raises(ArtefactsUnavailable, match="cannot be written: Not a directory"):
        await artefacts.put(JOB, pieces_of(CONTENT), "video/mp4")

    assert files(tmp_path) == [DRAFTS]


async def test_of_no_bytes_there_are_none(artefacts: Artefacts) -> None:
    kept = await artefacts.put(JOB, pieces_of(CONTENT), "video/mp4")

    assert [piece async for piece in await artefacts.read(kept, range(3, 3))] == []


# --- deleting, and stores that fail ---


async def test_a_job_is_deleted_with_all_that_it_has(artefacts: Artefacts, tmp_path: Path) -> None:
    film = await artefacts.put(JOB, pieces_of(CONTENT), "video/mp4")
    thumbnail = await artefacts.put(JOB, pieces_of(b"small"), "image/jpeg")
    neighbour = await artefacts.put(f"{JOB}4", pieces_of(CONTENT), "video/mp4")

    await artefacts.delete(JOB)
    await artefacts.delete(JOB)

    for gone in (film, thumbnail):
        for part in (range(1), range(0)):
            with pytest.raises(NoSuchArtefact):
                await artefacts.read(gone, part)
        with pytest.raises(NoSuchArtefact):
            await artefacts.check_has(gone)
    assert await whole(artefacts, neighbour) == CONTENT
    assert not (tmp_path / JOB).exists()


async def test_a_bucket_can_hand_out_what_it_has(artefacts: Artefacts, request: pytest.FixtureRequest) -> None:
    kept = await artefacts.put(JOB, pieces_of(bytes(LARGE), 100_000), "video/mp4")
    url = await artefacts.presigned(kept, 60)

    if request.node.callspec.params["artefacts"] == "folder":
        assert url is None
    else:
        assert url is not None
        answer = await asyncio.to_thread(httpx.get, url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        assert hashlib.sha256(answer.content).hexdigest() == kept.sha256


async def test_a_bucket_that_is_not_there_is_an_error_to_come_back_after(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ENDPOINT_URL": s3, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "a"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    artefacts = Artefacts.open("s3://nobodys", tmp_path)

    with pytest.raises(ArtefactsUnavailable) as caught:
        await artefacts.put(JOB, pieces_of(CONTENT), "video/mp4")

    assert (caught.value.status, caught.value.should_retry) == (503, True)
    assert "nobodys" not in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize("url", ["ftp://host/folder", "s3://", "/dev/null/folder"])
def test_a_place_that_cannot_be_used_is_named_at_the_start(url: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="ATELIER_ARTEFACTS_URL"):
        Artefacts.open(url, tmp_path)


@pytest.mark.parametrize("scheme", ["", "file://"])
async def test_the_folder_may_be_elsewhere(scheme: str, tmp_path: Path) -> None:
    artefacts = Artefacts.open(f"{scheme}{tmp_path / 'elsewhere'}", tmp_path / "default")
    kept = await artefacts.put(JOB, pieces_of(CONTENT), "video/mp4")

    assert files(tmp_path) == [f"elsewhere/{kept.key}"]


# --- downloads ---


def test_files_of_jobs_in_a_bucket_are_served_by_it_where_that_is_asked_for(
    artefacts: Artefacts,
    request: pytest.FixtureRequest,
    start: Callable[..., Gateway],
    workers: Workers,
    tmp_path: Path,
) -> None:
    is_bucket = request.node.callspec.params["artefacts"] == "s3"
    works(workers)
    client = start(artefacts_url=f"s3://bucket/{tmp_path.name}/jobs" if is_bucket else "").client
    film = create(client, "/v1/videos", {"prompt": "a boat"})["id"]
    ended(client, film)
    page = f"/v1/videos/{film}/content"
    part = client.get(page, params={"variant": "video"}, headers={"range": "bytes=2-5"})
    signed = client.post("/v1/signed_urls", json={"path": f"{page}?variant=thumbnail", "direct": True}).json()["url"]
    found = httpx.get(signed) if is_bucket else client.get(signed)
    nobodys = client.post("/v1/signed_urls", json={"path": "/v1/videos/job_0/content", "direct": True})

    assert signed.startswith("http://") == is_bucket
    assert (found.status_code, found.content, found.headers["content-type"]) == (200, b"small", "image/jpeg")
    assert (part.status_code, part.content) == (206, FILM[2:6])
    assert nobodys.status_code == 404
    assert client.delete(f"/v1/videos/{film}").is_success
    if is_bucket:
        assert httpx.get(signed).status_code == 404


Serve = Callable[[Artefact], str]


@pytest.fixture
def serve(artefacts: Artefacts) -> Iterator[Serve]:
    titles: dict[str, Artefact] = {}

    async def answer(request: Request) -> Response:
        request.scope["leases"] = AsyncExitStack()  # as the gateway gives each request
        return await download(request, artefacts, titles[request.url.path], 'A "nice"/film')

    app = Starlette(
        routes=[Route("/{path}", answer, methods=["GET"])],
        exception_handlers={GatewayError: render_gateway_error},
    )
    with served(app) as url:

        def start(artefact: Artefact) -> str:
            path = f"/{len(titles)}"
            titles[path] = artefact
            return url + path

        yield start


def put(artefacts: Artefacts, content: bytes) -> Artefact:
    return asyncio.run(artefacts.put(JOB, pieces_of(content, 100_000), "video/mp4"))


def test_a_download_says_what_it_is(artefacts: Artefacts, serve: Serve) -> None:
    kept = put(artefacts, CONTENT)
    url = serve(kept)
    answer, head = httpx.get(url), httpx.head(url)

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["etag"] == f'"{kept.sha256}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"].startswith('attachment; filename="A nice film.mp4"')
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": ""} == {**answer.headers, "date": ""}


def test_who_has_it_gets_nothing_again(artefacts: Artefacts, serve: Serve) -> None:
    kept = put(artefacts, CONTENT)
    url = serve(kept)
    for known in (f'"{kept.sha256}"', f'"another", W/"{kept.sha256}"', "*"):
        answer = httpx.get(url, headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == f'"{kept.sha256}"'
    assert httpx.get(url, headers={"if-none-match": '"another"'}).status_code == 200


def test_a_part_is_of_the_same_file_or_it_is_all_of_it(artefacts: Artefacts, serve: Serve) -> None:
    kept = put(artefacts, CONTENT)
    url = serve(kept)

    def ask(if_range: str) -> int:
        return httpx.get(url, headers={"range": "bytes=1-2", "if-range": if_range}).status_code

    assert ask(f'"{kept.sha256}"') == 206
    assert ask('"another"') == ask(f'W/"{kept.sha256}"') == ask("Sat, 28 Nov 2026 20:00:00 GMT") == 200


def test_every_range_is_what_python_would_cut(artefacts: Artefacts, serve: Serve) -> None:
    url = serve(put(artefacts, CONTENT))
    edges = st.integers(0, len(CONTENT) + 2) | st.sampled_from([0, 1, len(CONTENT) - 1, len(CONTENT), 10**17])

    with httpx.Client() as client:

        @given(first=edges | st.none(), last=edges | st.none())
        @settings(deadline=None, max_examples=60)
        def check(first: int | None, last: int | None) -> None:
            asked = f"bytes={'' if first is None else first}-{'' if last is None else last}"
            answer = client.get(url, headers={"range": asked})
            if (first is None and last is None) or (first is not None and last is not None and last < first):
                assert (answer.status_code, answer.content) == (200, CONTENT)
                return
            start = max(len(CONTENT) - (last or 0), 0) if first is None else first
            expected = CONTENT[start : None if first is None or last is None else last + 1]
            if not expected:
                assert answer.status_code == 416
                assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
                assert answer.json()["error"]["code"] == "range_not_satisfiable"
                return
            assert (answer.status_code, answer.content) == (206, expected)
            assert answer.headers["content-length"] == str(len(expected))
            end = start + len(expected) - 1
            assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(CONTENT)}"

        check()


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=0-1", "bytes=a-b", "bytes", "bytes=-1-2", ""])
def test_a_range_that_is_none_is_all(artefacts: Artefacts, serve: Serve, asked: str) -> None:
    answer = httpx.get(serve(put(artefacts, CONTENT)), headers={"range": asked})

    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_of_an_empty_file_there_is_no_part(artefacts: Artefacts, serve: Serve) -> None:
    url = serve(put(artefacts, b""))

    assert (httpx.get(url).status_code, httpx.get(url).content) == (200, b"")
    assert httpx.get(url, headers={"range": "bytes=0-"}).status_code == 416


def test_a_file_that_was_deleted_is_a_404(artefacts: Artefacts, serve: Serve) -> None:
    url = serve(put(artefacts, CONTENT))
    asyncio.run(artefacts.delete(JOB))

    answer = httpx.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "artefact_not_found")
    assert httpx.head(url).status_code == 404


def open_files(folder: Path) -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def test_who_leaves_midway_leaves_no_file_open(folder: Artefacts, tmp_path: Path) -> None:
    kept = put(folder, bytes(50_000_000))
    ended = threading.Event()

    async def answer(request: Request) -> Response:
        return await download(request, folder, kept, "film")

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                ended.set()

    app = Starlette(routes=[Route("/", answer)])
    with served(watched) as url:
        with httpx.stream("GET", url) as response:
            next(response.iter_raw())
        assert ended.wait(LONG)
        give_up_at = time.monotonic() + LONG
        while open_files(tmp_path):  # a thread of the store's may just be in it
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
