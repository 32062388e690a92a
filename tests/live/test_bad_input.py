"""Bad input is refused by name before a model runs, and leaves the worker as it was."""

import http.client
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.live.conftest import TOKEN, System
from tests.live.pictures import png, png_bomb

PROMPT_ROUTES = {"text": "text", "audio": "audio", "image": "image", "bentoml/image": "image", "3d": "mesh"}


def assert_refused(response: httpx.Response, param: str | None, status: int = 400) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]
    assert error["code"]


@pytest.mark.parametrize("route", PROMPT_ROUTES)
@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("prompt=", "prompt"),
        ("prompt=%20%0a", "prompt"),
        ("prompt=a%00b", "prompt"),
        ("prompt=%ff%fe", "prompt"),
        ("", "prompt"),
        (f"prompt={'a' * 40_000}", "prompt"),
        ("prompt=a&promt=b", "promt"),
        ("prompt=a&seed=-1", "seed"),
        ("prompt=a&seed=x", "seed"),
    ],
    ids=["empty", "blank", "control", "not-utf8", "missing", "over-long", "unknown", "negative-seed", "text-seed"],
)
def test_a_bad_query_is_named(system: System, client: httpx.Client, route: str, query: str, param: str) -> None:
    task = PROMPT_ROUTES[route]
    before = system.count(task, "atelier_iterations_total")
    assert_refused(client.get(f"/generate/{route}?{query}"), param)
    assert system.count(task, "atelier_iterations_total") == before


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("image?prompt=a&num_inference_steps=0", "num_inference_steps"),
        ("image?prompt=a&size=100x64", "size"),
        ("image?prompt=a&size=0x0", "size"),
        ("image?prompt=a&size=99999x64", "size"),
        ("image?prompt=a&size=big", "size"),
        ("3d?prompt=a&num_inference_steps=0", "num_inference_steps"),
        ("3d?prompt=a&num_inference_steps=100000", "num_inference_steps"),
        ("text?prompt=a&temperature=-1", "temperature"),
        ("text?prompt=a&temperature=nan", "temperature"),
        ("audio?prompt=a&preset=nobody", "preset"),
        ("audio?prompt=a&preset=../../../etc/passwd", "preset"),
    ],
)
def test_a_value_no_model_can_serve_is_named(client: httpx.Client, path: str, param: str) -> None:
    assert_refused(client.get(f"/generate/{path}"), param)


@pytest.mark.parametrize("num_frames", ["0", "-1", "1000000", "x", "1.5"])
def test_a_number_of_frames_that_cannot_be_is_named(client: httpx.Client, num_frames: str) -> None:
    response = client.post("/generate/video", files={"image": png()}, data={"num_frames": num_frames})
    assert_refused(response, "num_frames")


def upload(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/generate/video", files={"image": ("a.png", data, "image/png")}, data={"num_frames": "2"})


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", png()[:-200], png()[:40], b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["empty", "text", "truncated", "header-only", "signature", "svg"],
)
def test_a_file_that_is_no_picture_is_named(system: System, client: httpx.Client, data: bytes) -> None:
    before = system.count("video", "atelier_iterations_total")
    assert_refused(upload(client, data), "image")
    assert system.count("video", "atelier_iterations_total") == before


def test_a_picture_bomb_is_refused_and_the_worker_goes_on(client: httpx.Client) -> None:
    assert_refused(upload(client, png_bomb()), "image")
    assert upload(client, png()).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"num_frames": "2"}},
        {"json": {"image": "x"}},
        {"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}},
    ],
    ids=["no-file", "json", "nonsense"],
)
def test_a_body_that_is_no_form_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    response = client.post("/generate/video", **body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_worker_alone_refuses_in_the_same_words(system: System) -> None:
    url = f"{system.worker('image')}/v1/images/generations"
    assert_refused(httpx.post(url, json={"prompt": ""}, headers=TOKEN), "prompt")
    assert_refused(httpx.post(url, json={"prompt": "a", "promt": "b"}, headers=TOKEN), "promt")
    assert_refused(httpx.post(url, json={"prompt": 5}, headers=TOKEN), "prompt")
    assert_refused(httpx.post(url, content=b"{", headers={**TOKEN, "content-type": "application/json"}), None)
    assert_refused(httpx.post(url, json={"prompt": "a", "model": "none"}, headers=TOKEN), "model", status=404)


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ("text", "/v1/chat/completions"),
        ("audio", "/v1/audio/speech"),
        ("image", "/v1/images/generations"),
        ("video", "/v1/videos"),
        ("mesh", "/v1/3d/generations"),
    ],
)
def test_a_worker_alone_reads_no_body_of_200_megabytes(system: System, task: str, path: str) -> None:
    parts = urlsplit(system.worker(task))
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        headers = {"host": "a", "content-type": "application/json", "content-length": "200000000", **TOKEN}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
