"""Jobs: accepted, run, shown, followed, cancelled, begun again, deleted, over workers that play their part."""

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cli.events import events_of
from gateway.jobs.schema import Change, Job
from gateway.jobs.store import Store
from services.image.schema import EditRequest
from services.media import png
from services.provenance import Provenance
from tests.gateway.conftest import LONG, Gateway, Workers, error_of, opened, served
from tests.gateway.test_media import EDITS, parts
from tests.gateway.test_receipts import entry_of

Start = Callable[..., Gateway]
PROMPT = {"prompt": "a chair"}
MESH = "/v1/3d/generations"
FILM = b"a film of some length"
DRAWN = {"route": "/v1/images/generations", "body": PROMPT}
PICTURES_TO_FILMS = "stable-video-diffusion-img2vid"


def sent(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def a_file(variant: str, media_type: str, content: bytes) -> bytes:
    half = len(content) // 2
    pieces = [
        sent("output", variant=variant, media_type=media_type, b64=base64.b64encode(piece).decode())
        for piece in (content[:half], content[half:])
    ]
    whole = {"variant": variant, "media_type": media_type, "bytes": len(content)}
    return b"".join(pieces) + sent("file", **whole, sha256=sha256(content).hexdigest())


FILES = {
    "/v1/3d/generations": (("glb", "model/gltf-binary", b"glTF"), ("preview", "image/gif", b"GIF")),
    "/v1/videos": (
        ("video", "video/mp4", FILM),
        ("thumbnail", "image/jpeg", b"small"),
        ("spritesheet", "image/jpeg", b"many"),
    ),
    "/v1/images/generations": (("image", "image/png", b"PNG"),),
    "/v1/images/edits": (("image", "image/png", b"PNG"),),
    "/v1/audio/speech": (("audio", "audio/wav", b"RIFF"),),
    "/v1/chat/completions": (
        ("answer", "application/json", json.dumps({"choices": [{"message": {"content": "a red boat"}}]}).encode()),
    ),
}  # fmt: skip
USAGE = {"/v1/3d/generations": {"meshes": 1}, "/v1/videos": {"frames": 9}, "/v1/images/generations": {"pixel_steps": 7}}


def works(
    workers: Workers,
    gate: Future[None] | None = None,
    broken: int = 0,
    files: Mapping[str, tuple[tuple[str, str, bytes], ...]] = FILES,
) -> None:
    """Do each job; the first `broken` break off; where there is a gate, after a preview."""

    async def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/mesh")
        begun = (
            sent("started") + sent("progress", step=1, steps=4, eta_seconds=2.0) + sent("preview", step=1, b64="eA==")
        )
        if sum(each.url.path.endswith(path) for each in workers.requests) <= broken:
            return workers.stream(begun, httpx.ReadError("gone"), x_seed="5", x_model="a-model")
        done = b"".join(a_file(*each) for each in {**FILES, **files}[path]) + sent("done", usage=USAGE.get(path, {}))
        waits = [] if gate is None else [opened(gate)]
        return workers.stream(begun, *waits, done, x_seed="5", x_model="a-model")

    workers.answer = answer


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    return until(client, job_id, lambda job: job["status"] not in ("queued", "in_progress"))


def until(client: httpx.Client, job_id: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    give_up_at = time.monotonic() + LONG
    while True:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if is_so(job):
            return job
        assert time.monotonic() < give_up_at, job


def create(
    client: httpx.Client, path: str = MESH, body: Mapping[str, Any] = PROMPT, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    answer = client.post(path, json=body, headers=headers)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_mesh_is_a_job_with_files(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    accepted = gateway.client.post(MESH, json=PROMPT)
    mesh_id = accepted.json()["id"]
    job = ended(gateway.client, mesh_id)

    assert (accepted.status_code, accepted.headers["location"]) == (202, f"/v1/jobs/{mesh_id}")
    assert (job["status"], job["progress"], job["seed"], job["model"]) == ("completed", 100, 5, "a-model")
    assert {each["variant"]: each["bytes"] for each in job["outputs"]} == {"glb": 4, "preview": 3}
    assert workers.requests[0].headers["accept"] == "text/event-stream; final=1"
    assert gateway.client.get(f"/v1/3d/{mesh_id}").json()["status"] == "completed"
    content = gateway.client.get(f"/v1/3d/{mesh_id}/content", params={"variant": "preview"})
    assert (content.content, content.headers["content-type"]) == (b"GIF", "image/gif")
    assert error_of(gateway.client.get(f"/v1/3d/{mesh_id}/content?variant=ply"))["code"] == "output_not_found"
    assert gateway.client.get(f"/v1/videos/{mesh_id}").status_code == 404


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # the SDK, of its video verbs
def test_the_sdks_video_verbs(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    sdk = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    film = sdk.videos.create_and_poll(prompt="", input_reference=("a.png", b"a picture"), seconds="4", size="720x1280")
    films = [sdk.videos.create(prompt="a boat").id for _ in range(3)]
    listed = [each.id for each in sdk.videos.list(limit=2)]
    content = sdk.videos.download_content(film.id).read()
    sheet = sdk.videos.download_content(film.id, variant="spritesheet").read()
    again = sdk.videos.retrieve(film.id)
    gone = sdk.videos.delete(film.id)

    assert (film.status, film.progress, film.seconds, film.size) == ("completed", 100, "4", "720x1280")
    assert (content, sheet, again.id) == (FILM, b"many", film.id)
    assert listed == [*reversed(films), film.id]
    assert gone.deleted
    assert gateway.client.get(f"/v1/jobs/{film.id}").status_code == 404
    assert ended(gateway.client, films[0])["status"] == "completed"
    part = gateway.client.get(f"/v1/videos/{films[0]}/content", headers={"range": "bytes=2-5"})
    head = gateway.client.head(f"/v1/videos/{films[0]}/content")
    assert (part.status_code, part.content) == (206, FILM[2:6])
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(FILM)), b"")


def test_whatever_is_asked_for_can_be_a_job(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    prefers = {"prefer": "respond-async"}
    asked = [
        gateway.client.get("/generate/audio", params={"prompt": "hello"}, headers=prefers),
        gateway.client.get("/generate/image", params={"prompt": "a boat"}, headers=prefers),
        gateway.client.post("/generate/video", files={"image": b"a picture"}, headers=prefers),
        gateway.client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "a"}], "stream": True},
            headers={"prefer": "respond-async, wait=20"},
        ),
    ]

    assert [each.status_code for each in asked] == [202, 202, 202, 200], [each.text for each in asked]
    for each in asked:
        job = ended(gateway.client, each.json()["id"])
        assert (job["status"], each.headers["location"]) == ("completed", f"/v1/jobs/{job['id']}"), job
    chat = next(each for each in workers.requests if each.url.path == "/v1/chat/completions")
    assert "stream" not in json.loads(chat.content)


def test_a_job_says_what_it_was_asked_without_pictures(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    chair = create(gateway.client, body={**PROMPT, "grid_size": 32, "seed": 5})
    of_picture = create(gateway.client, body={"image": "AAAA", "seed": 5})
    film = gateway.client.post("/v1/videos", files={"input_reference": b"a picture"}, data={"num_frames": "9"}).json()
    shown = [ended(gateway.client, job["id"]) for job in (chair, of_picture, film)]

    assert [(job["prompt"], job["asked"]) for job in shown[:2]] == [
        ("a chair", {"prompt": "a chair", "grid_size": 32, "seed": 5}),
        (None, {"seed": 5}),
    ]
    assert (shown[2]["prompt"], shown[2]["asked"]["num_frames"]) == (None, "9")


def test_a_chain_is_one_job(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    steps = [
        {"route": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "a scene"}]}},
        {"route": "/v1/images/generations", "body": {"size": "64x64"}},
        {"route": "/v1/videos", "body": {"num_frames": 4}},
    ]
    job = ended(gateway.client, create(gateway.client, "/v1/jobs", {"steps": steps})["id"])
    drawn, filmed = workers.requests[1:]

    assert (job["status"], job["kind"], job["steps"]) == ("completed", "video", ["text", "image", "video"])
    assert job["prompt"] == "a scene"
    assert [each["variant"] for each in job["outputs"]] == ["answer", "image", "video", "thumbnail", "spritesheet"]
    assert json.loads(drawn.content)["prompt"] == "a red boat"
    assert b'name="input_reference"' in filmed.content
    assert b"PNG" in filmed.content


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "hello"}, {"role": "user", "content": "a scene"}]},
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a scene"}]}]}),
        ("/v1/responses", {"input": "a scene"}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a scene"}]}]}),
    ],
)
def test_a_conversation_goes_by_its_last_message(
    gateway: Gateway, workers: Workers, route: str, body: dict[str, Any]
) -> None:
    works(workers)
    job = ended(gateway.client, create(gateway.client, route, body, {"prefer": "respond-async"})["id"])

    assert job["prompt"] == "a scene"


def test_files_of_one_name_are_told_apart_by_their_steps(gateway: Gateway, workers: Workers, tmp_path: Path) -> None:
    works(workers, files={"/v1/images/edits": (("image", "image/png", b"PNG again"),)})
    steps = [{"route": "/v1/images/generations", "body": PROMPT}, {"route": "/v1/images/edits", "body": PROMPT}]
    job = ended(gateway.client, create(gateway.client, "/v1/jobs", {"steps": steps})["id"])

    assert [gateway.client.get(each["url"]).content for each in job["outputs"]] == [b"PNG", b"PNG again"]
    assert gateway.client.get(job["links"]["content"]).content == b"PNG again"
    fetching = [sys.executable, "-m", "cli", "jobs", "fetch", job["id"], "--to", str(tmp_path), "--url", gateway.url]
    files = map(Path, subprocess.run(fetching, check=True, capture_output=True, text=True).stdout.split())
    assert {path.name.removeprefix(job["id"]): path.read_bytes() for path in files} == {
        "-image-step-1.png": b"PNG",
        "-image.png": b"PNG again",
    }


def test_a_step_is_sent_as_it_was_checked(gateway: Gateway, workers: Workers) -> None:
    works(workers, files={EDITS: (("image", "image/png", b"PNG"),)})
    body = {"prompt": "a boat", "size": "auto", "user": "a", "style": None, "deterministic": True}
    steps = [{"route": "/v1/images/generations", "body": PROMPT}, {"route": EDITS, "body": body}]
    job = ended(gateway.client, create(gateway.client, "/v1/jobs", {"steps": steps})["id"])

    assert job["status"] == "completed"
    sent = parts(workers.requests[1].headers["content-type"], workers.requests[1].content)
    form = EditRequest.model_validate({name: content.decode() for name, filename, content in sent if filename is None})
    assert (form.size, form.deterministic, form.user, form.style) == (None, True, "a", None)
    refused = gateway.client.post("/v1/jobs", json={"steps": [{"route": "/v1/videos", "body": {"num_frames": 9.0}}]})
    assert error_of(refused)["code"] == "invalid_type"


@pytest.mark.parametrize(
    ("steps", "param"),
    [
        ([], "steps"),
        ([{"route": "/v1/keys"}], "steps.0.route"),
        ([{"route": "/v1/images/generations", "body": PROMPT}, {"route": "/v1/chat/completions"}], "steps.1.route"),
        ([{"route": "/v1/images/generations", "body": {"prompt": "a", "size": "1x1"}}], "size"),
        ([DRAWN, {"route": "/v1/videos", "body": {"model": "wan2.1-t2v-1.3b"}}], "input_reference"),
        ([{"route": "/v1/videos", "body": {**PROMPT, "model": PICTURES_TO_FILMS}}], "input_reference"),
        ([{"route": "/v1/videos", "body": {**PROMPT, "num_frames": 10}}], "num_frames"),
        ([DRAWN, {"route": MESH, "body": {"model": "shap-e"}}], "image"),
        ([{"route": MESH, "body": {**PROMPT, "model": "shap-e-img2img"}}], "image"),
    ],
)  # fmt: skip
def test_a_chain_that_cannot_be_is_refused_before_it_begins(client: httpx.Client, steps: list[Any], param: str) -> None:
    refused = client.post("/v1/jobs", json={"steps": steps})

    assert (refused.status_code, error_of(refused)["param"]) == (400, param)


def test_a_step_is_filled_in_as_its_route_would_fill_it_in(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    steps = [DRAWN, {"route": "/v1/videos", "body": {"seconds": 2, "size": "64x64"}}]
    job_id = create(gateway.client, "/v1/jobs", {"steps": steps})["id"]
    ended(gateway.client, job_id)
    alone = gateway.client.post("/v1/videos", data={"seconds": "2", "size": "64x64"}, files={"input_reference": b"PNG"})
    ended(gateway.client, alone.json()["id"])

    shown = [gateway.client.get(f"/v1/videos/{each}").json() for each in (job_id, alone.json()["id"])]
    assert [(each["seconds"], each["size"]) for each in shown] == [("2", "64x64")] * 2


def test_the_same_key_and_body_are_the_same_job(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    first = create(gateway.client, headers={"idempotency-key": "mine"})
    again = create(gateway.client, headers={"idempotency-key": "mine"})
    other = gateway.client.post(MESH, json={"prompt": "another"}, headers={"idempotency-key": "mine"})
    ended(gateway.client, first["id"])

    assert again["id"] == first["id"]
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    assert len(workers.requests) == 1


@pytest.mark.parametrize("body", [PROMPT, {**PROMPT, "seed": None}], ids=["plain", "null"])
def test_a_call_that_breaks_off_is_made_again(gateway: Gateway, workers: Workers, body: dict[str, Any]) -> None:
    works(workers, broken=2)
    job = ended(gateway.client, create(gateway.client, body=body)["id"])

    assert (job["status"], job["attempts"], len(job["outputs"])) == ("completed", 3, 2)
    assert [each.headers["x-atelier-attempt"] for each in workers.requests] == ["1", "2", "3"]
    assert len({json.loads(each.content)["seed"] for each in workers.requests}) == 1


def test_a_call_that_a_proxys_worker_was_lost_with_is_made_again(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    does = workers.answer

    async def answer(request: httpx.Request) -> httpx.Response:
        if len(workers.requests) > 1:
            return await does(request)
        lost = workers.stream(b"Internal Server Error")
        lost.status_code = 500
        return lost

    workers.answer = answer
    job = ended(gateway.client, create(gateway.client, headers={"prefer": "respond-async"})["id"])

    assert (job["status"], job["attempts"]) == ("completed", 2)


def test_a_worker_under_a_path_is_asked_there_whether_it_lives(start: Start, workers: Workers) -> None:
    asked: set[str] = set()
    health = workers.health

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.add(str(request.url))
        return await health(request)

    workers.health = answer  # type: ignore[method-assign] # the double's
    gate: Future[None] = Future()
    works(workers, gate)
    gateway = start(mesh_url="http://a.test/mesh", probe_interval=0.01)
    job_id = create(gateway.client)["id"]
    until(gateway.client, job_id, lambda _: "http://a.test/mesh/livez" in asked)
    gate.set_result(None)

    assert "http://a.test/livez" not in asked


def test_what_the_worker_refuses_fails_with_its_words(gateway: Gateway, workers: Workers) -> None:
    workers.refuses_in_envelope(400, "grid_size: too fine", "grid_size")
    job = ended(gateway.client, create(gateway.client)["id"])

    assert (job["status"], job["error"]["message"]) == ("failed", "grid_size: too fine")
    assert gateway.client.get(f"/v1/3d/{job['id']}/content").status_code == 409
    works(workers)
    assert gateway.client.post(f"/v1/jobs/{job['id']}/retry").status_code == 202
    assert ended(gateway.client, job["id"])["status"] == "completed"
    assert error_of(gateway.client.post(f"/v1/jobs/{job['id']}/retry"))["code"] == "job_not_retriable"


@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_is_the_same_at_once_and_later(gateway: Gateway, workers: Workers, status: int) -> None:
    workers.refuses_in_envelope(status, "size: too large", "size")
    at_once = gateway.client.post("/v1/images/generations", json=PROMPT)
    later = ended(gateway.client, create(gateway.client, "/v1/images/generations", PROMPT, LATER)["id"])

    assert at_once.status_code == status
    assert later["error"] == error_of(at_once)


def test_cancel_closes_the_call(gateway: Gateway, workers: Workers) -> None:
    gate: Future[None] = Future()
    works(workers, gate)
    job_id = create(gateway.client)["id"]
    under_way = until(gateway.client, job_id, lambda job: bool(job["step_progress"]))
    cancelled = gateway.client.post(f"/v1/jobs/{job_id}/cancel").json()

    assert workers.streams[0].is_closed.is_set()
    assert (under_way["progress"], under_way["eta_seconds"]) == (25, 2.0)
    assert (cancelled["status"], cancelled["error"]["code"]) == ("cancelled", "cancelled")
    assert gateway.client.get(f"/v1/3d/{job_id}").json()["status"] == "failed"
    assert gateway.client.delete(f"/v1/jobs/{job_id}").json()["deleted"] is True


def read(client: httpx.Client, job_id: str, **headers: str) -> list[tuple[int | None, str, dict[str, Any]]]:
    """All events: number, name and data."""
    found = []
    text = client.get(f"/v1/jobs/{job_id}/events", headers=headers).text
    assert text.endswith("data: [DONE]\n\n")
    for block in text.split("\n\n")[:-2]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        number = int(fields["id"]) if "id" in fields else None
        found.append((number, fields["event"], json.loads(fields["data"])))
    return found


def test_who_follows_sees_each_change_once_and_the_latest_preview(gateway: Gateway, workers: Workers) -> None:
    gate: Future[None] = Future()
    works(workers, gate)
    job_id = create(gateway.client)["id"]
    seen = ""
    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        for text in stream.iter_text():
            seen += text
            if "event: preview" in seen and not gate.done():
                gate.set_result(None)
    events = read(gateway.client, job_id)
    numbers = [number for number, _, _ in events if number is not None]
    rest = read(gateway.client, job_id, **{"last-event-id": str(numbers[0])})

    assert [data["status"] for _, name, data in events if name == "status"] == ["queued", "in_progress", "completed"]
    assert seen.count("event: status") == 3
    assert '"eta_seconds": 2.0' in seen
    assert [number for number, _, _ in rest] == numbers[1:]


def test_a_silent_stream_says_that_it_is_still_there(
    gateway: Gateway, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.events.SILENCE_SECONDS", 0.01)
    gate: Future[None] = Future()
    works(workers, gate)
    job_id = create(gateway.client)["id"]
    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        lines = []
        for line in stream.iter_lines():
            lines.append(line)
            if line == ": still here" and "event: preview" in lines and not gate.done():
                gate.set_result(None)

    assert gate.done()
    names = [each.name for each in events_of(iter(lines))]
    assert (names.count("status"), names[-1]) == (3, "[DONE]")


SPEECH = "/v1/audio/speech"
LATER = {"prefer": "respond-async"}
SAID = {"input": "Good evening. And good night."}


def convertible(workers: Workers) -> dict[str, Any]:
    """Make pictures that say where they come from; convert what is to be converted, and keep how that was asked for."""
    picture = png.encode(np.zeros((8, 8, 3), np.uint8), Provenance("a-model", "1", 5, {"size": "8x8"}).tags)
    works(workers, files={"/v1/images/generations": (("image", "image/png", picture),)})
    make = workers.answer
    seen: dict[str, Any] = {}

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/conversions":
            return await make(request)
        seen["body"] = await request.aread()
        return workers.stream(b"a picture in WebP", content_type="image/webp")

    workers.answer = answer
    return seen


def test_a_file_can_be_had_in_another_format_and_is_not_made_again(gateway: Gateway, workers: Workers) -> None:
    seen = convertible(workers)
    job = ended(gateway.client, create(gateway.client, "/v1/images/generations", PROMPT, LATER)["id"])
    [output] = job["outputs"]
    answer = gateway.client.get(output["url"], params={"variant": "image", "format": "webp"})

    assert (answer.content, answer.headers["content-type"]) == (b"a picture in WebP", "image/webp")
    assert answer.headers["content-disposition"].endswith(".webp")
    assert answer.headers["x-seed"] == "5"
    assert b'"model":"a-model","revision":"1","seed":5,"parameters":{"size":"8x8"}' in seen["body"]
    assert b"\x89PNG" in seen["body"]
    same = gateway.client.get(output["url"], params={"variant": "image", "format": "png"})
    assert (same.content, same.headers["etag"]) == (gateway.client.get(output["url"]).content, same.headers["etag"])
    made = [row for row in gateway.rows() if row["modality"]]
    assert [row["route"] for row in made] == ["/v1/images/generations"]


@pytest.mark.parametrize(
    ("path", "form", "status", "code"),
    [
        (MESH, "glb", 400, "invalid_value"),
        (MESH, "webp", 400, "invalid_value"),
        ("/v1/images/generations", "mp3", 400, "invalid_value"),
        ("/v1/images/generations", "webp", 409, "not_convertible"),  # what is there is no picture
        ("/v1/chat/completions", "png", 400, "invalid_value"),
    ],
)
def test_what_cannot_be_had_in_a_format_is_refused(
    gateway: Gateway, workers: Workers, path: str, form: str, status: int, code: str
) -> None:
    works(workers)
    body = {"messages": [{"role": "user", "content": "hello"}]} if "chat" in path else PROMPT
    job = ended(gateway.client, create(gateway.client, path, body, LATER)["id"])
    answer = gateway.client.get(f"/v1/jobs/{job['id']}/content", params={"format": form})

    assert (answer.status_code, error_of(answer)["code"], error_of(answer)["param"]) == (status, code, "format")


def test_a_worker_that_is_away_converts_nothing_and_that_is_said(gateway: Gateway, workers: Workers) -> None:
    convertible(workers)
    job = ended(gateway.client, create(gateway.client, "/v1/images/generations", PROMPT, LATER)["id"])

    async def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    workers.answer = nobody
    answer = gateway.client.get(f"/v1/jobs/{job['id']}/content", params={"format": "webp"})

    assert (answer.status_code, error_of(answer)["code"]) == (503, "worker_unavailable")


def speaks(workers: Workers, gate: Future[None], *then: bytes | Exception) -> None:
    """Say a beginning, and the rest once the gate is open."""
    heard = sent("sound", media_type="audio/wav", b64=base64.b64encode(b"RI").decode())

    async def answer(request: httpx.Request) -> httpx.Response:
        return workers.stream(sent("started") + heard, opened(gate), *then, x_seed="5", x_model="a-model")

    workers.answer = answer


@pytest.mark.parametrize("rest", [b"FF, and all of it", b""])
def test_speech_is_heard_while_it_is_made_and_ends_as_the_file_does(
    gateway: Gateway, workers: Workers, rest: bytes
) -> None:
    gate: Future[None] = Future()
    speaks(workers, gate, a_file("audio", "audio/wav", b"RI" + rest) + sent("done"))
    job_id = create(gateway.client, SPEECH, SAID, LATER)["id"]

    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/sound") as stream:
        pieces = stream.iter_raw()
        assert next(pieces) == b"RI"
        assert gateway.client.get(f"/v1/jobs/{job_id}").json()["status"] == "in_progress"
        gate.set_result(None)
        assert b"".join(pieces) == rest
        assert stream.headers["content-type"] == "audio/wav"
    again = gateway.client.get(f"/v1/jobs/{job_id}/sound", headers={"range": "bytes=0-1"})
    assert (again.status_code, again.content) == (206, b"RI")


def test_speech_that_breaks_off_does_not_end_as_if_it_were_whole(gateway: Gateway, workers: Workers) -> None:
    gate: Future[None] = Future()
    speaks(workers, gate, httpx.ReadError("gone"))
    job_id = create(gateway.client, SPEECH, SAID, LATER)["id"]

    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/sound") as stream:
        pieces = stream.iter_raw()
        assert next(pieces) == b"RI"
        gate.set_result(None)
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)


def test_there_is_nothing_to_hear_of_a_mesh_or_of_what_was_cancelled(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    mesh_id = create(gateway.client)["id"]
    assert error_of(gateway.client.get(f"/v1/jobs/{mesh_id}/sound"))["code"] == "output_not_found"
    gate: Future[None] = Future()
    works(workers, gate)
    job_id = create(gateway.client, SPEECH, SAID, LATER)["id"]
    gateway.client.post(f"/v1/jobs/{job_id}/cancel")
    gate.set_result(None)
    assert error_of(gateway.client.get(f"/v1/jobs/{job_id}/sound"))["code"] == "job_not_completed"


def test_who_follows_what_is_deleted_sees_its_end(
    gateway: Gateway, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Store.changes
    has_ended: list[str] = []

    async def looked_just_before(self: Store, job: Job, after: int) -> list[Change]:
        found = await looked(self, job, after)
        if found and not has_ended:
            has_ended.append(job.id)
            await self.cancel(job.id, None)
            await self.mark_deleted(job.id, None, datetime.now(UTC) + timedelta(hours=1))
        return found

    works(workers, Future())
    job_id = create(gateway.client)["id"]
    monkeypatch.setattr(Store, "changes", looked_just_before)
    events = read(gateway.client, job_id)

    assert has_ended == [job_id]
    assert events[-1][2]["status"] == "cancelled"


def test_a_job_that_begins_again_while_it_is_deleted_is_cancelled_first(
    gateway: Gateway, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.refuses_in_envelope(400, "grid_size: too fine", "grid_size")
    job_id = create(gateway.client)["id"]
    ended(gateway.client, job_id)
    marks = Store.mark_deleted
    again: list[Job | None] = []

    async def marks_just_after(self: Store, job_id: str, caller: str | None, until: datetime) -> Job | None:
        if not again:
            job = await self.get(job_id, caller)
            assert job is not None
            again.append(await self.requeue(job, "another-request", "", datetime.now(UTC)))
        return await marks(self, job_id, caller, until)

    works(workers, Future())
    monkeypatch.setattr(Store, "mark_deleted", marks_just_after)
    deleted = gateway.client.delete(f"/v1/jobs/{job_id}")

    assert again[0] is not None
    assert deleted.json()["deleted"] is True
    assert gateway.client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert all(stream.is_closed.wait(LONG) for stream in workers.streams)


def test_who_deletes_what_is_listed_can_turn_the_page(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    ids = [create(gateway.client)["id"] for _ in range(3)]
    for job_id in ids:
        ended(gateway.client, job_id)
    gateway.client.delete(f"/v1/3d/{ids[2]}")

    assert gateway.client.get("/v1/3d", params={"after": ids[0]}).json()["data"] == []
    for path in ("/v1/3d", "/v1/jobs", "/v1/videos"):
        nowhere = gateway.client.get(path, params={"after": "job_nowhere"})
        assert (nowhere.status_code, error_of(nowhere)["param"]) == (404, "after")
    assert [each["id"] for each in gateway.client.get("/v1/3d", params={"after": ids[2]}).json()["data"]] == ids[1::-1]


def test_what_a_chain_has_made_is_there_before_its_end(gateway: Gateway, workers: Workers) -> None:
    gate: Future[None] = Future()

    async def answer_step(request: httpx.Request) -> httpx.Response:
        files = b"".join(a_file(*each) for each in FILES[request.url.path]) + sent("done", usage={})
        waits = [opened(gate)] if request.url.path == MESH else []
        return workers.stream(sent("started"), *waits, files)

    workers.answer = answer_step
    steps = [{"route": "/v1/images/generations", "body": PROMPT}, {"route": MESH}]
    job_id = create(gateway.client, "/v1/jobs", {"steps": steps})["id"]
    job = until(gateway.client, job_id, lambda job: job["step"] == 2)
    picture = gateway.client.get(job["outputs"][0]["url"])
    whole = gateway.client.get(f"/v1/jobs/{job_id}/content")
    gate.set_result(None)

    assert picture.content == b"PNG"
    assert (whole.status_code, error_of(whole)["code"]) == (409, "job_not_completed")
    assert "content" not in job["links"]
    assert "content" in ended(gateway.client, job_id)["links"]


@pytest.mark.parametrize("path", [MESH, "/v1/videos"])
@pytest.mark.parametrize(
    ("prefer", "applied"), [("wait=20", "wait=20"), ("respond-async", "respond-async"), ("", None)]
)
def test_it_is_said_which_preference_was_followed(
    gateway: Gateway, workers: Workers, path: str, prefer: str, applied: str | None
) -> None:
    works(workers)
    answer = gateway.client.post(path, json=PROMPT, headers={"prefer": prefer})

    assert answer.is_success
    assert answer.headers.get("preference-applied") == applied


def test_callers_take_turns(start: Start, workers: Workers) -> None:
    gate: Future[None] = Future()
    works(workers, gate)
    gateway = start(job_concurrency=1)
    keys = {owner: make_key(gateway, owner, admin=owner == "admin") for owner in ("admin", "a", "b")}
    many = [create(gateway.client, headers=keys["a"])["id"] for _ in range(4)]
    one = create(gateway.client, headers=keys["b"])["id"]
    gate.set_result(None)
    gateway.client.headers.update(keys["admin"])
    started = {job_id: ended(gateway.client, job_id) for job_id in [*many, one]}
    order = [each.headers["x-atelier-caller"] for each in workers.requests]

    assert all(job["status"] == "completed" for job in started.values())
    assert len(set(order[:3])) == 2


def make_key(gateway: Gateway, owner: str, *, admin: bool = False, **fields: Any) -> dict[str, str]:
    scopes = ["mesh", "video", "image", *(["admin"] if admin else [])]
    made = gateway.client.post("/v1/keys", json={"owner": owner, "scopes": scopes, **fields})
    assert made.status_code == 201, made.text
    header = {"authorization": f"Bearer {made.json()['key']}"}
    if admin:
        gateway.client.headers.update(header)
    return header


def test_callers_see_their_own_jobs_alone(gateway: Gateway, workers: Workers) -> None:
    works(workers)
    keys = {owner: make_key(gateway, owner, admin=owner == "admin") for owner in ("admin", "a", "b")}
    mine = create(gateway.client, headers=keys["a"])["id"]
    ended(gateway.client, mine)
    for verb, path in [("GET", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")]:
        assert gateway.client.request(verb, f"/v1/jobs/{mine}{path}", headers=keys["b"]).status_code == 404
    assert gateway.client.get("/v1/3d", headers=keys["b"]).json()["data"] == []
    assert [each["id"] for each in gateway.client.get("/v1/jobs?kind=mesh", headers=keys["a"]).json()["data"]] == [mine]


def test_budgets_are_reserved_at_acceptance_and_settled_by_what_was_made(gateway: Gateway, workers: Workers) -> None:
    gate: Future[None] = Future()
    works(workers, gate)
    make_key(gateway, "admin", admin=True)
    key = make_key(gateway, "a", budgets={"day": {"frames": 100}})
    ask = {"prompt": "a boat", "num_frames": 81}
    film = gateway.client.post("/v1/videos", json=ask, headers=key)
    refused = gateway.client.post("/v1/videos", json=ask, headers=key)
    gate.set_result(None)
    ended(gateway.client, film.json()["id"])

    assert (refused.status_code, error_of(refused)["code"]) == (429, "insufficient_quota")
    assert used(gateway, key) == 9
    assert entry_of(gateway, film.headers["x-request-id"])["units"] == {"frames": 9}


def used(gateway: Gateway, key: Mapping[str, str]) -> float:
    key_id = next(each["id"] for each in gateway.client.get("/v1/keys").json()["data"] if each["owner"] == "a")
    found: float = gateway.client.get(f"/v1/keys/{key_id}").json()["used"]["day"]["frames"]
    return found


class Inbox:
    """A receiver of webhooks."""

    def __init__(self, gate: Future[None] | None = None) -> None:
        """Where there is a gate, answer when it is open."""
        self.has_come = threading.Event()
        self.got: list[tuple[bytes, dict[str, str]]] = []
        self._gate = gate

    async def take(self, request: Request) -> Response:
        self.got.append((await request.body(), dict(request.headers)))
        self.has_come.set()
        if self._gate is not None:
            await opened(self._gate)
        return Response(status_code=200)


def test_nobody_waits_for_anothers_receivers(start: Start, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.webhooks.SECONDS", 10 * LONG)
    works(workers)
    gate: Future[None] = Future()
    silent, inbox = Inbox(gate), Inbox()
    routes = [Route("/silent", silent.take, methods=["POST"]), Route("/", inbox.take, methods=["POST"])]
    with served(Starlette(routes=routes)) as url:
        gateway = start(allowed_networks="127.0.0.1/32")
        _, one, other = (make_key(gateway, owner, admin=owner == "admin") for owner in ("admin", "a", "b"))
        create(gateway.client, headers={**one, "x-webhook-url": f"{url}/silent"})
        assert silent.has_come.wait(LONG)
        create(gateway.client, headers={**other, "x-webhook-url": url})
        was_told = inbox.has_come.wait(LONG)
        gate.set_result(None)

    assert was_told


def test_the_end_of_a_job_is_told_so_that_the_sdk_believes_it(start: Start, workers: Workers) -> None:
    works(workers)
    inbox = Inbox()
    with served(Starlette(routes=[Route("/", inbox.take, methods=["POST"])])) as url:
        closed = start()
        refused = closed.client.post("/v1/jobs", json={"steps": [{"route": MESH, "body": PROMPT}], "webhook_url": url})
        closed.close()
        gateway = start(allowed_networks="127.0.0.1/32")
        job_id = create(gateway.client, headers={"x-webhook-url": url})["id"]
        assert inbox.has_come.wait(LONG)
        secret = gateway.client.get("/v1/webhooks/secret").json()["secret"]
    sdk = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", webhook_secret=secret)
    event = sdk.webhooks.unwrap(*inbox.got[0])

    assert (refused.status_code, error_of(refused)["param"]) == (400, "webhook_url")
    assert (event.type, vars(event.data)["id"]) == ("mesh.completed", job_id)
