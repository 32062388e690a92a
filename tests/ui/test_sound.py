"""What the browser's player is given."""

import io
import wave
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.ui.gateway import Gateway, refusal
from ui.key import COOKIE
from ui.sound import PATH, player


def browser(url: str) -> TestClient:
    return TestClient(Starlette(routes=[Route(PATH, player(url))]), cookies={COOKIE: "atl_1_secret"})


def test_speech_is_asked_for_with_the_key_of_the_cookie_and_comes_as_it_is(gateway: Gateway) -> None:
    part = {"content-range": "bytes 0-3/9", "accept-ranges": "bytes", "x-internal": "secret"}
    gateway.answers["GET", "/v1/jobs/job_1/sound"] = Response(b"RIFF", 206, part, "audio/wav")
    answer = browser(gateway.url).get("/sound/job_1", headers={"range": "bytes=0-3"})

    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (206, b"RIFF", "audio/wav")
    assert answer.headers["content-range"] == part["content-range"]
    assert "x-internal" not in answer.headers
    [(_, _, _, headers)] = gateway.asked
    assert (headers["authorization"], headers["range"]) == ("Bearer atl_1_secret", "bytes=0-3")


SAMPLES = bytes(range(200))
RANGES = ("bytes=0-", "bytes=0-1", "bytes=40-43", "bytes=40-59", "bytes=44-", "bytes=150-160", "bytes=200-9999")


@pytest.fixture
def bare_speech(gateway: Gateway, tmp_path: Path) -> TestClient:
    file = tmp_path / "speech"
    file.write_bytes(SAMPLES)
    gateway.answers["GET", "/v1/jobs/job_1/sound"] = lambda _: FileResponse(file, media_type="audio/pcm")
    return browser(gateway.url)


def test_samples_alone_come_as_a_wav(bare_speech: TestClient) -> None:
    answer = bare_speech.get("/sound/job_1?bare=1")
    with wave.open(io.BytesIO(answer.content)) as sound:
        kind = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate(), sound.getnframes())
        samples = sound.readframes(1000)

    assert (kind, samples) == ((1, 2, 24_000, 100), SAMPLES)
    assert answer.headers["content-type"] == "audio/wav"


@pytest.mark.parametrize("asked", RANGES)
def test_a_part_of_it_is_that_part_of_the_wav(bare_speech: TestClient, asked: str) -> None:
    whole = bare_speech.get("/sound/job_1?bare=1").content
    answer = bare_speech.get("/sound/job_1?bare=1", headers={"range": asked})

    first, _, last = asked.removeprefix("bytes=").partition("-")
    part = range(len(whole))[int(first) : int(last) + 1 if last else None]
    assert (answer.status_code, answer.content) == (206, whole[part.start : part.stop])
    assert answer.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/{len(whole)}"


def test_samples_come_as_a_wav_while_they_are_made(gateway: Gateway) -> None:
    gateway.answers["GET", "/v1/jobs/job_1/sound"] = StreamingResponse(iter([SAMPLES]), media_type="audio/pcm")
    answer = browser(gateway.url).get("/sound/job_1?bare=1", headers={"range": "bytes=0-"})

    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    assert answer.content[:4] == b"RIFF"
    assert answer.content.endswith(SAMPLES)
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("path", ["/sound/job_1", "/sound/job_1?bare=1"])
def test_what_the_gateway_refuses_is_refused(gateway: Gateway, path: str) -> None:
    gateway.answers["GET", "/v1/jobs/job_1/sound"] = refusal(401, "this key opens nothing")
    answer = browser(gateway.url).get(path)

    assert (answer.status_code, answer.json()) == (401, {"error": {"message": "this key opens nothing"}})


def test_no_other_route_of_the_gateway_can_be_asked(gateway: Gateway) -> None:
    browser(gateway.url).get("/sound/..%2F..%2Fkeys%3Fa=")
    assert all(path.startswith("/v1/jobs/") and path.endswith("/sound") for path in gateway.calls("GET"))


def test_a_gateway_that_is_not_there_is_said_to_be_so() -> None:
    answer = browser("http://127.0.0.1:1").get("/sound/job_1")
    assert (answer.status_code, answer.text) == (502, "The gateway does not answer.")
