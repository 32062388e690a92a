"""What the official SDK makes of workers that fail: the error it raises, and how often it asks."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.conftest import LONG, Gateway, Workers, error_of

EVENT = b'data: {"id": "a", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\n'
EVENTS = {"content_type": "text/event-stream"}


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """As its users have it: it tries again by itself."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="-", timeout=LONG) as client:
        yield client


def chat(sdk: openai.OpenAI, **more: Any) -> Any:
    return sdk.chat.completions.create(model="tinyllama-1.1b-chat", messages=[{"role": "user", "content": "a"}], **more)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_work_that_failed_is_not_done_again(
    sdk: openai.OpenAI, workers: Workers, status: int, expected: type[openai.APIStatusError]
) -> None:
    workers.refuses_in_envelope(status, "no", x_should_retry="false")

    with pytest.raises(expected) as refusal:
        chat(sdk)
    assert (refusal.value.code, len(workers.requests)) == ("some_code", 1)


def test_a_worker_that_dies_before_it_answers_is_not_killed_again(sdk: openai.OpenAI, workers: Workers) -> None:
    async def die(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("killed")

    workers.answer = die
    with pytest.raises(openai.InternalServerError) as refusal:
        chat(sdk)
    assert (refusal.value.code, len(workers.requests)) == ("worker_died", 1)


def test_a_busy_worker_is_asked_again(sdk: openai.OpenAI, workers: Workers) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if len(workers.requests) > 1:
            return httpx.Response(200, json={"choices": [], "object": "chat.completion"})
        workers.refuses_in_envelope(429, "full", x_should_retry="true", retry_after="0")
        refused = await workers.answer(request)
        workers.answer = answer
        return refused

    workers.answer = answer
    assert chat(sdk).choices == []
    assert len(workers.requests) == 2


@pytest.mark.parametrize(
    ("broken", "code"),
    [(httpx.ReadError("killed"), "worker_died"), (httpx.ReadTimeout("silence"), "deadline_exceeded")],
)
def test_a_worker_that_dies_midstream_is_an_error_behind_what_came(
    gateway: Gateway, sdk: openai.OpenAI, workers: Workers, broken: Exception, code: str
) -> None:
    workers.streams_once(EVENT, broken, **EVENTS)

    chunks = chat(sdk, stream=True)
    assert next(chunks).choices[0].delta.content == "Hi"
    with pytest.raises(openai.APIError) as raised:
        next(chunks)
    assert (type(raised.value), raised.value.code, raised.value.type) == (openai.APIError, code, "server_error")
    assert len(workers.requests) == 1
    sdk.close()
    assert [row["ending"] for row in gateway.rows()] == ["failed"]


def test_half_an_event_is_not_made_whole(sdk: openai.OpenAI, workers: Workers) -> None:
    workers.streams_once(EVENT, EVENT[:20], httpx.ReadError("killed"), **EVENTS)

    chunks = chat(sdk, stream=True)
    next(chunks)
    with pytest.raises(openai.APIConnectionError):
        next(chunks)


def test_half_a_sound_is_no_success(sdk: openai.OpenAI, workers: Workers) -> None:
    workers.streams_once(b"half", httpx.ReadError("killed"))

    speech = sdk.audio.speech.with_streaming_response
    with (
        speech.create(model="bark-small", voice="v2/en_speaker_0", input="a") as answer,
        pytest.raises(Exception, match="peer closed"),
    ):
        list(answer.iter_bytes())


# --- what the framework refuses itself ---


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/videos/a/remix", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/images/generations", 405, "method_not_allowed"),
        ("GET", "/v1/signed_urls", 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
    ],
)
def test_a_route_that_is_not_there_says_so_in_the_envelope(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)

    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert error_of(answer)["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"
    assert ("allow" in answer.headers) is (status == 405)


TAKE_JSON = (
    *("/v1/chat/completions", "/v1/responses", "/v1/images/generations", "/v1/audio/speech", "/v1/3d/generations"),
    *("/v1/videos", "/v1/jobs", "/v1/keys", "/v1/signed_urls"),
)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b'"a"', "application/json"),
        (b"null", "application/json"),
        (b"", "application/json"),
        (b"\xff", "application/json"),
        (b"prompt=a", "application/x-www-form-urlencoded"),
        (b"<a/>", "text/xml"),
        (b"{}", ""),
        (b'{"prompt": 5, "messages": 5, "input": 5, "steps": 5, "owner": 5, "path": 5}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"a":' * 100_000, "application/json"),
        (b'{"messages": ' + b"[" * 100_000, "application/json"),
        (b'{"seed": 1e999}', "application/json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json"),
        (b'{"\\ud800": 1}', "application/json"),
    ],
)
def test_a_body_that_is_none_is_refused_in_the_envelope(client: httpx.Client, content: bytes, media_type: str) -> None:
    for path in TAKE_JSON:
        answer = client.post(path, content=content, headers={"content-type": media_type} if media_type else {})

        assert answer.status_code == 400, f"{path}: {answer.text}"
        assert error_of(answer)["type"] == "invalid_request_error"
        assert answer.headers["x-should-retry"] == "false"
