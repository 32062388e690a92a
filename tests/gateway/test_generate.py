"""The book's routes: what reaches a worker, and what never does."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from services.audio.schema import SpeechRequest
from services.image.schema import ImageRequest
from services.mesh.schema import MeshRequest
from services.schema import ATTEMPT_HEADER, CALLER_HEADER, DEADLINE_HEADER, MAX_SEED, GenerationRequest
from services.text.schema import ChatRequest
from services.uploads import read_form
from services.video.schema import VideoRequest
from tests.gateway.conftest import PNG, Gateway, Workers, error_of

TEXT_ROUTES = ("/generate/text", "/generate/audio", "/generate/image", "/generate/bentoml/image", "/generate/3d")
PROMPT_ROUTES = (*TEXT_ROUTES, "/generate/openai/text")
LONGEST = {"/generate/text": 32_000, "/generate/openai/text": 32_000, "/generate/audio": 4096}
FILE = {"image": ("cat.png", PNG, "image/png")}


@pytest.fixture
def workers(shared: tuple[Gateway, Workers]) -> Workers:
    shared[1].forget()
    return shared[1]


def as_read_by_video_worker(request: httpx.Request) -> tuple[bytes, VideoRequest]:
    """Read the form with the worker's own reader."""

    async def receive() -> Message:
        return {"type": "http.request", "body": request.content, "more_body": False}

    headers = [(name.lower(), value) for name, value in request.headers.raw]
    read = read_form(Request({"type": "http", "headers": headers}, receive), ["input_reference"], 1_000_000)
    files, fields = asyncio.run(read)
    return files["input_reference"], VideoRequest.model_validate(fields)


@pytest.mark.parametrize(
    ("route", "query", "path", "accept", "schema", "expected"),
    [
        (
            "/generate/text",
            {"prompt": "Hi", "temperature": "0.2", "seed": "7"},
            "/v1/chat/completions",
            "text/plain",
            ChatRequest,
            {"messages": ({"role": "user", "content": "Hi"},), "temperature": 0.2, "seed": 7},
        ),
        (
            "/generate/audio",
            {"prompt": "Hello. ♪", "preset": "alto", "seed": "0"},
            "/v1/audio/speech",
            "audio/wav",
            SpeechRequest,
            {"input": "Hello. ♪", "voice": "alto", "response_format": "wav", "seed": 0},
        ),
        (
            "/generate/image",
            {"prompt": "a\ncat", "size": "64x128", "num_inference_steps": "3", "seed": str(MAX_SEED)},
            "/v1/images/generations",
            "image/png",
            ImageRequest,
            {"prompt": "a\ncat", "size": "64x128", "num_inference_steps": 3, "seed": MAX_SEED},
        ),
        (
            "/generate/bentoml/image",
            {"prompt": "猫"},
            "/v1/images/generations",
            "image/png",
            ImageRequest,
            {"prompt": "猫"},
        ),
        (
            "/generate/3d",
            {"prompt": "a chair", "num_inference_steps": "2"},
            "/v1/3d/generations",
            "model/obj",
            MeshRequest,
            {"prompt": "a chair", "num_inference_steps": 2},
        ),
    ],
)
def test_a_query_becomes_the_workers_own_body(
    client: httpx.Client,
    workers: Workers,
    route: str,
    query: dict[str, str],
    path: str,
    accept: str,
    schema: type[GenerationRequest],
    expected: dict[str, Any],
) -> None:
    response = client.get(route, params=query)

    assert response.content == b"firstsecondthird"
    [sent] = workers.requests
    assert (sent.method, sent.url.path, sent.url.query) == ("POST", path, b"")
    assert sent.headers["accept"] == accept
    assert sent.headers["content-type"] == "application/json"
    assert schema.model_validate_json(sent.content).model_dump(exclude_none=True) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, {}), ({"num_frames": "3", "seed": "9"}, {"num_frames": 3, "seed": 9})],
)
def test_a_form_becomes_the_workers_own_form(
    client: httpx.Client, workers: Workers, fields: dict[str, str], expected: dict[str, int]
) -> None:
    response = client.post("/generate/video", files=FILE, data=fields)

    assert response.content == b"firstsecondthird"
    [sent] = workers.requests
    assert (sent.method, sent.url.path, sent.headers["accept"]) == ("POST", "/v1/videos", "video/mp4")
    data, body = as_read_by_video_worker(sent)
    assert data == PNG
    assert body.model_dump(exclude_none=True) == expected


def test_a_file_of_a_megabyte_arrives_whole(client: httpx.Client, workers: Workers) -> None:
    picture = bytes(range(256)) * 8192
    client.post("/generate/video", files={"image": picture})
    assert picture in workers.requests[0].content


@pytest.mark.parametrize("route", TEXT_ROUTES)
def test_the_longest_prompt_is_taken(client: httpx.Client, workers: Workers, route: str) -> None:
    prompt = "猫" * 1000 + "a" * (LONGEST.get(route, 2000) - 1000)
    assert client.get(route, params={"prompt": prompt}).status_code == 200
    assert prompt in workers.requests[0].content.decode()


def test_the_worker_is_told_what_it_needs_and_nothing_of_the_client(client: httpx.Client, workers: Workers) -> None:
    theirs = {
        "x-atelier-deadline": "999999",
        "x-atelier-caller": "root",
        "x-atelier-priority": "0",
        "x-atelier-attempt": "7",
        "authorization": "Bearer secret",
        "cookie": "session=1",
        "x-forwarded-for": "10.0.0.1",
        "accept": "text/html",
        "accept-encoding": "gzip, br",
    }
    client.get("/generate/text", params={"prompt": "hi"}, headers=theirs)
    client.post("/generate/video", files=FILE, headers=theirs)

    for sent in workers.requests:
        ours = {name for name in sent.headers if name.startswith("x-")}
        assert ours == {"x-request-id", DEADLINE_HEADER, CALLER_HEADER, ATTEMPT_HEADER}
        assert sent.headers[ATTEMPT_HEADER] == "1"
        assert sent.headers[CALLER_HEADER] not in {"root", "10.0.0.1", ""}
        assert 500 < float(sent.headers[DEADLINE_HEADER]) <= 600
        assert sent.headers["accept-encoding"] == "identity"
        assert not {"authorization", "cookie"} & set(sent.headers)
        assert sent.headers["accept"] != "text/html"


def test_a_modality_without_a_worker_is_refused_without_a_wait(start: Callable[..., Gateway], workers: Workers) -> None:
    response = start(mesh_url="").client.get("/generate/3d?prompt=a")
    assert (response.status_code, error_of(response)["code"]) == (503, "modality_not_served")
    assert response.headers["x-should-retry"] == "false"
    assert workers.requests == []


def test_a_worker_may_live_under_a_path(start: Callable[..., Gateway], workers: Workers) -> None:
    start(text_url="http://worker.test/text/").client.get("/generate/text?prompt=a")
    assert str(workers.requests[0].url) == "http://worker.test/text/v1/chat/completions"
