"""Pictures as links: kept, served without a key, deleted with the job that they are listed as; else nothing is kept."""

import base64
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.gateway.conftest import LONG, PNG, Gateway, Workers, error_of, opened
from tests.gateway.test_job_keeping import ask
from tests.gateway.test_keys import bearer, create

PICTURES = (PNG, PNG + b" either")
BODY: dict[str, Any] = {"prompt": "a cat", "response_format": "url", "n": 2, "output_format": "webp"}
Start = Callable[..., Gateway]


def event(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def drawn(*pictures: bytes) -> bytes:
    """What a worker sends of finished files."""
    sent = b""
    for number, picture in enumerate(pictures, start=1):
        named = {"variant": "image" if number == 1 else f"image-{number}", "media_type": "image/webp"}
        sent += event("output", **named, b64=base64.b64encode(picture).decode())
        sent += event("file", **named, bytes=len(picture), sha256=hashlib.sha256(picture).hexdigest())
    return sent


def draws(workers: Workers, *pieces: Any) -> None:
    workers.streams_once(*pieces, content_type="text/event-stream", x_seed="7", x_model="tiny-sd")


DONE = event("done", finish_reason="stop", usage={"pixel_steps": 8})


def kept(data_dir: Path) -> list[Path]:
    return [path for path in (data_dir / "artefacts").rglob("*") if path.is_file()]


def path_of(url: str) -> str:
    return url.removeprefix("https://pictures.example")


def test_a_link_is_good_without_a_key_until_its_picture_is_deleted(
    start: Start, workers: Workers, tmp_path: Path
) -> None:
    gateway = start(public_url="https://pictures.example/")
    admin = create(gateway, scopes=["admin"])["key"]
    own, other = (bearer(create(gateway, admin, scopes=["image"])["key"]) for _ in range(2))
    draws(workers, event("queued", position=0), drawn(*PICTURES), DONE)

    answer = gateway.client.post("/v1/images/generations", json=BODY, headers=own)
    document = answer.json()
    links = [each["url"] for each in document["data"]]

    assert workers.requests[0].headers["accept"] == "text/event-stream; final=1"
    assert (answer.headers["x-seed"], answer.headers["x-model"]) == ("7", "tiny-sd")
    assert [each["seed"] for each in document["data"]] == [7, 8]
    assert (document["size"], document["output_format"]) == ("64x64", "webp")
    assert (document["usage"]["pixel_steps"], document["usage"]["total_tokens"]) == (8, 0)
    assert [gateway.client.get(path_of(link)).content for link in links] == list(PICTURES)
    assert gateway.client.get(path_of(links[0]).replace("variant=image", "variant=image-2")).status_code == 401
    assert gateway.client.get(urlsplit(links[0]).path).status_code == 401

    job = f"/v1/jobs/{document['job']}"
    assert gateway.client.get(job, headers=other).status_code == 404
    shown = gateway.client.get(job, headers=own).json()
    assert (shown["status"], shown["kind"], shown["seed"], len(shown["outputs"])) == ("completed", "image", 7, 2)
    assert shown["expires_at"] - shown["completed_at"] == 7 * 86_400
    assert gateway.client.delete(job, headers=own).status_code == 200
    assert gateway.client.get(path_of(links[0])).status_code == 404
    assert kept(tmp_path) == []


def test_a_link_begins_as_the_caller_calls_the_gateway(start: Start, workers: Workers) -> None:
    gateway = start()
    draws(workers, drawn(PNG), DONE)
    [picture] = gateway.client.post("/v1/images/generations", json={**BODY, "n": 1}).json()["data"]

    assert picture["url"].startswith(f"{gateway.url}/v1/jobs/job_")
    assert httpx.get(picture["url"]).content == PNG


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (event("error", status=400, message="no", code="content_policy_violation"), 400, "content_policy_violation"),
        (b"", 503, "worker_died"),
        (httpx.ReadError("broken"), 503, "worker_died"),
    ],
)
def test_what_fails_midway_is_an_error_and_nothing_is_kept(
    start: Start, workers: Workers, tmp_path: Path, end: Any, status: int, code: str
) -> None:
    gateway = start()
    draws(workers, drawn(PNG), end)
    answer = gateway.client.post("/v1/images/edits", files={"image": PNG}, data={**BODY, "n": "1"})

    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert gateway.client.get("/v1/jobs").json()["data"] == []
    assert kept(tmp_path) == []
    assert workers.num_open == 0


def test_a_caller_who_leaves_ends_the_work_and_nothing_is_kept(start: Start, workers: Workers, tmp_path: Path) -> None:
    gateway = start()
    connection = gateway.connect()
    draws(workers, drawn(PNG), opened(Future()))
    connection.request("POST", "/v1/images/generations", json.dumps(BODY), {"content-type": "application/json"})
    assert workers.is_asked.wait(20)
    connection.close()
    gateway.metrics()  # once the request has ended

    assert workers.num_open == 0
    assert kept(tmp_path) == []


def test_a_stream_has_no_links(start: Start, workers: Workers) -> None:
    answer = start().client.post("/v1/images/generations", json={**BODY, "n": 1, "stream": True})

    assert (answer.status_code, error_of(answer)["param"]) == (400, "response_format")
    assert workers.requests == []


def test_pictures_that_others_gave_up_meanwhile_are_no_answer(start: Start, workers: Workers, tmp_path: Path) -> None:
    gateway = start()
    gate: Future[None] = Future()
    draws(workers, drawn(PNG), opened(gate), DONE)
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(gateway.client.post, "/v1/images/generations", json={**BODY, "n": 1})
        assert workers.is_asked.wait(LONG)
        ask(tmp_path, "UPDATE uploads SET accepted_by = ''")  # as others do who take us for dead
        gate.set_result(None)
        answer = asking.result()

    assert (answer.status_code, error_of(answer)["code"]) == (503, "jobs_unavailable")
    assert gateway.client.get("/v1/jobs").json()["data"] == []
    assert kept(tmp_path) == []
    assert ask(tmp_path, "SELECT * FROM uploads") == []
