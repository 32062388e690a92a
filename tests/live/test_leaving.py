"""A caller who leaves stops the model within one iteration, before the first byte as well as after it."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.live.conftest import TOKEN, System
from tests.live.pictures import png

PICTURE = {"prompt": "a", "size": "512x512", "num_inference_steps": 200}
# Each asks for far more iterations than pass before the caller is gone.
SLOW_START: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("GET", {"url": "/generate/image?prompt=a&size=512x512&num_inference_steps=200"}),
    "mesh": ("GET", {"url": "/generate/3d?prompt=a&num_inference_steps=200"}),
    "video": ("POST", {"url": "/generate/video", "files": {"image": png()}, "data": {"num_frames": "64"}}),
    "audio": ("GET", {"url": "/generate/audio?prompt=" + "a%20" * 90}),
    "image, two": ("POST", {"url": "/v1/images/generations", "json": {**PICTURE, "n": 2}}),
    "image, edit": ("POST", {"url": "/v1/images/edits", "files": {"image": png()}, "data": PICTURE}),
    "audio, speech": ("POST", {"url": "/v1/audio/speech", "json": {"input": "a " * 90, "response_format": "mp3"}}),
}
LONG_STREAM: dict[str, tuple[str, dict[str, Any]]] = {
    "text": (
        "/v1/chat/completions",
        {"json": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1900, "temperature": 0}},
    ),
    "audio": ("/v1/audio/speech", {"json": {"input": "A sentence. " * 100}}),
    "video": ("/v1/videos", {"files": {"input_reference": png()}, "data": {"num_frames": "64", "size": "128x128"}}),
}


class Watch:
    """What a worker's counters have grown by."""

    def __init__(self, system: System, task: str) -> None:
        self._system = system
        self._task = task
        self._before = {name: self._now(name) for name in ("iterations_total", "iterations_after_leave_total")}
        self._left = self._now("generations_total", ending="left")

    def _now(self, name: str, **labels: str) -> float:
        return self._system.count(self._task, f"atelier_{name}", **labels)

    def grown(self, name: str) -> float:
        return self._now(name) - self._before[name]

    def wait_until_working(self) -> None:
        self._system.wait(lambda: self.grown("iterations_total") > 0)

    def wait_until_left(self, number: int = 1) -> None:
        self._system.wait(lambda: self._now("generations_total", ending="left") >= self._left + number)


def send_and_leave(base_url: str, method: str, request: dict[str, Any], watch: Watch) -> None:
    """Send a request over a socket of its own, see the model start, and close the socket before any answer."""
    with httpx.Client(base_url=base_url) as client:
        built = client.build_request(method, **request)
        head = f"{method} {built.url.raw_path.decode()} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in built.headers.items()
        )
        parts = urlsplit(base_url)
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(head.encode() + b"\r\n" + built.read())
            watch.wait_until_working()


@pytest.mark.parametrize("task", SLOW_START)
def test_leaving_before_the_first_byte_stops_the_model(system: System, client: httpx.Client, task: str) -> None:
    method, request = SLOW_START[task]
    num_generations = 2 if task == "image, two" else 1
    task = task.split(",")[0]
    watch = Watch(system, task)
    send_and_leave(system.gateway, method, request, watch)
    watch.wait_until_left(num_generations)
    done = watch.grown("iterations_total")
    assert watch.grown("iterations_after_leave_total") <= num_generations
    assert done < {"image": 200, "mesh": 399, "video": 36, "audio": 150}[task]
    # The next request is served, and nothing went on behind it.
    assert client.get("/generate/image", params={"prompt": "a"}).status_code == 200
    assert watch.grown("iterations_total") == done or task == "image"


def first_chunk(response: httpx.Response) -> bytes:
    chunks: Iterator[bytes] = response.iter_raw()
    return next(chunks)


@pytest.mark.parametrize("task", LONG_STREAM)
def test_leaving_midway_stops_the_model(system: System, task: str) -> None:
    watch = Watch(system, task)
    path, body = LONG_STREAM[task]
    accept = {"accept": "text/plain"} if task == "text" else {}
    with (
        httpx.Client(base_url=system.worker(task), headers=TOKEN, timeout=120) as client,
        client.stream("POST", path, headers=accept, **body) as response,
    ):
        assert first_chunk(response)
    watch.wait_until_left()
    assert watch.grown("iterations_after_leave_total") <= 1
    assert watch.grown("iterations_total") < {"text": 1900, "audio": 10_000, "video": 36}[task]


SKETCHES = {**PICTURE, "size": "256x256", "stream": True, "partial_images": 3}
FORM = {name: str(value).lower() for name, value in SKETCHES.items()}
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("/v1/images/generations", {"json": SKETCHES}),
    "image, edit": ("/v1/images/edits", {"files": {"image": png()}, "data": FORM}),
    "audio": ("/v1/audio/speech", {"json": {"input": "A sentence. " * 100, "response_format": "opus"}}),
    "audio, events": ("/v1/audio/speech", {"json": {"input": "A sentence. " * 100, "stream_format": "sse"}}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_leaving_one_of_openais_streams_at_the_gateway_stops_the_worker(
    system: System, client: httpx.Client, name: str
) -> None:
    task = name.split(",")[0]
    watch = Watch(system, task)
    path, body = STREAMS[name]
    with client.stream("POST", path, **body) as response:
        assert response.status_code == 200
        assert first_chunk(response)
    watch.wait_until_left()
    assert watch.grown("iterations_after_leave_total") <= 1
    assert watch.grown("iterations_total") < {"image": 200, "audio": 10_000}[task]


def test_leaving_a_stream_at_the_gateway_stops_the_worker(system: System, client: httpx.Client) -> None:
    watch = Watch(system, "audio")
    with client.stream("GET", "/generate/audio", params={"prompt": "A sentence. " * 100}) as response:
        assert first_chunk(response)
    watch.wait_until_left()
    assert watch.grown("iterations_after_leave_total") <= 1
