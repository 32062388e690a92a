"""Every way of failing, as the SDK's users meet it: the class, the code, and whether it is tried again."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conformance.calls import HELLO
from tests.conformance.strict import Strict
from tests.live.conftest import LONG, TOKEN, System
from tests.live.pictures import png

ERRORS = {
    "BadRequestError": "400: a field does not fit (`param` names it), or the operator's policy refuses the prompt "
    "(`content_policy_violation`)",
    "AuthenticationError": "401: there is no key, or none that is valid (`invalid_api_key`)",
    "PermissionDeniedError": "403: the key is not for this (`insufficient_scope`, `model_not_allowed`)",
    "NotFoundError": "404: no such model (`model_not_found`), job (`job_not_found`), place in a list "
    "(`after_not_found`) or route",
    "ConflictError": "409: a film that is not done has no files (`job_not_completed`); not tried again",
    "APIStatusError": "413: more than `ATELIER_MAX_UPLOAD_BYTES` (`payload_too_large`)",
    "UnprocessableEntityError": "never of Atelier's own: what OpenAI answers with 400 is 400 here; passed on where a "
    "provider says so",
    "RateLimitError": "429: the key's rate (`rate_limit_exceeded`), its budget (`insufficient_quota`, not tried "
    "again), a full queue (`queue_full`)",
    "InternalServerError": "503: a worker that is gone or loading; 504: the deadline passed (`deadline_exceeded`, not "
    "tried again); 500, 502: the model or a provider failed (not tried again)",
    "APIError": "mid-stream: the deadline passed, the worker died; what came before it stays",
    "APITimeoutError": "the client's own `timeout`: the model stops",
    "APIConnectionError": "nothing answers at `base_url`",
}


def chat(sdk: openai.OpenAI, **more: Any) -> Any:
    return sdk.chat.completions.create(**{"model": "tinyllama-1.1b-chat", "messages": HELLO, "max_tokens": 2, **more})


def both(sdk: openai.OpenAI, ask: Callable[[Any], Any], expected: type[openai.APIError]) -> Any:
    """Ask with the sync and the async client: the same error."""

    async def later() -> None:
        options: dict[str, Any] = {"max_retries": sdk.max_retries, "timeout": sdk.timeout}
        async with openai.AsyncOpenAI(base_url=sdk.base_url, api_key=sdk.api_key, **options) as client:
            await ask(client)

    with pytest.raises(expected) as first:
        ask(sdk)
    with pytest.raises(expected) as second:
        asyncio.run(later())
    for raised in (first.value, second.value):
        assert type(raised) is expected
        if isinstance(raised, openai.APIStatusError):
            assert raised.request_id
            assert raised.body is not None
    assert (first.value.code, first.value.param) == (second.value.code, second.value.param)
    return first.value


def film(sdk: Any, **more: Any) -> Any:
    return sdk.videos.create(prompt="", input_reference=("a.png", png()), **more)


def test_a_field_that_does_not_fit(sdk: openai.OpenAI) -> None:
    error = both(sdk, lambda client: chat(client, temperature=3), openai.BadRequestError)
    assert (error.param, error.type, error.code) == ("temperature", "invalid_request_error", "invalid_value")


def test_a_prompt_against_the_policy(strict: Strict) -> None:
    messages = [{"role": "user", "content": "a bomb"}]
    error = both(strict.sdk(), lambda client: chat(client, messages=messages), openai.BadRequestError)
    assert error.code == "content_policy_violation"


@pytest.mark.parametrize("key", ["sk-1", "atl_0123456789abcdef_" + "a" * 43])
def test_no_key_that_opens_anything(strict: Strict, key: str) -> None:
    error = both(strict.sdk(key), chat, openai.AuthenticationError)
    assert (error.type, error.code) == ("authentication_error", "invalid_api_key")


def test_a_key_that_is_not_for_this(strict: Strict) -> None:
    scope = both(strict.sdk(strict.key(scopes=["image"])), chat, openai.PermissionDeniedError)
    model = both(strict.sdk(strict.key(scopes=["text"], models=["tiny-sd"])), chat, openai.PermissionDeniedError)
    assert (scope.type, scope.code) == ("permission_error", "insufficient_scope")
    assert (model.param, model.code) == ("model", "model_not_allowed")


def test_what_is_not_there(sdk: openai.OpenAI) -> None:
    model = both(sdk, lambda client: chat(client, model="gpt-5"), openai.NotFoundError)
    job = both(sdk, lambda client: client.videos.retrieve("video_1"), openai.NotFoundError)
    assert (model.code, model.param, job.code) == ("model_not_found", "model", "job_not_found")
    assert "tinyllama-1.1b-chat" in model.message


def test_a_film_that_is_not_done_has_no_files_and_nobody_asks_again(sdk: openai.OpenAI) -> None:
    begun = film(sdk, size="256x256", extra_body={"num_frames": "64", "num_inference_steps": "200"})
    eager = sdk.with_options(max_retries=2)
    error = both(eager, lambda client: client.videos.download_content(begun.id), openai.ConflictError)
    sdk.videos.delete(begun.id)

    assert error.code == "job_not_completed"
    assert error.response.headers["x-should-retry"] == "false"
    assert error.response.request.headers["x-stainless-retry-count"] == "0"


def test_too_large_an_upload(strict: Strict) -> None:
    image = b"\x89PNG" + bytes(300_000)
    error = both(strict.sdk(), lambda client: client.images.edit(image=image, prompt="a"), openai.APIStatusError)
    assert (error.status_code, error.code) == (413, "payload_too_large")


def test_a_key_that_has_asked_often_enough(strict: Strict) -> None:
    sdk = strict.sdk(strict.key(scopes=["text"], requests_per_minute=1))
    chat(sdk)
    error = both(sdk, chat, openai.RateLimitError)
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert error.response.headers["x-should-retry"] == "true"
    assert int(error.response.headers["retry-after"]) > 0


def test_a_budget_that_is_used_up_is_not_asked_again(strict: Strict) -> None:
    key = strict.key(scopes=["text"], budgets={"day": {"tokens": 1}})
    error = both(strict.sdk(key, max_retries=2), chat, openai.RateLimitError)
    assert error.code == "insufficient_quota"
    assert error.response.request.headers["x-stainless-retry-count"] == "0"


def test_a_worker_that_takes_no_connections_may_be_asked_again(strict: Strict) -> None:
    def speak(client: Any) -> Any:
        return client.audio.speech.create(model="bark-small", voice="v2/en_speaker_1", input="a")

    error = both(strict.sdk(), speak, openai.InternalServerError)
    assert (error.status_code, error.code) == (503, "worker_unavailable")
    assert error.response.headers["x-should-retry"] == "true"


@pytest.fixture
def late(system: System) -> Iterator[Callable[[float], openai.OpenAI]]:
    """The text worker, for callers who wait so many seconds."""
    with ExitStack() as stack:

        def make(seconds: float) -> openai.OpenAI:
            headers = {**TOKEN, "x-atelier-deadline": str(seconds)}
            url = f"{system.worker('text')}/v1"
            return stack.enter_context(openai.OpenAI(base_url=url, api_key="-", default_headers=headers, timeout=LONG))

        yield make


LONG_CHAT = {"max_tokens": 1900, "logit_bias": {"2": -100}, "n": 8}


def test_a_deadline_that_passes_is_not_tried_again(late: Callable[[float], openai.OpenAI]) -> None:
    with pytest.raises(openai.InternalServerError) as refusal:
        chat(late(0.2), **LONG_CHAT)
    assert (refusal.value.status_code, refusal.value.code) == (504, "deadline_exceeded")
    assert refusal.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_a_deadline_that_passes_midstream_is_an_error_behind_what_came(late: Callable[[float], openai.OpenAI]) -> None:
    chunks = []
    with pytest.raises(openai.APIError) as broken:  # noqa: PT012 - what came before it counts
        for chunk in chat(late(0.6), **LONG_CHAT, stream=True):
            chunks.append(chunk)
    assert type(broken.value) is openai.APIError
    assert broken.value.code == "deadline_exceeded"
    assert chunks


def test_who_has_no_more_patience_stops_the_model(system: System, sdk: openai.OpenAI) -> None:
    left = system.count("text", "atelier_generations_total", ending="left")
    both(sdk.with_options(timeout=0.3), lambda client: chat(client, **LONG_CHAT), openai.APITimeoutError)
    system.wait(lambda: system.count("text", "atelier_generations_total", ending="left") >= left + 2)


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="-", max_retries=0) as sdk:
            both(sdk, chat, openai.APIConnectionError)


def test_a_webhook_is_unwrapped_and_a_forged_one_is_not(strict: Strict) -> None:
    came: list[tuple[dict[str, str], bytes]] = []
    is_there = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()
            is_there.set()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    sdk = strict.sdk()
    secret = sdk.get("/webhooks/secret", cast_to=httpx.Response).json()["secret"]
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.05,))
        thread.start()
        hook = {"x-webhook-url": f"http://127.0.0.1:{receiver.server_port}/"}
        made = film(sdk, extra_headers=hook, extra_body={"num_frames": "2", "num_inference_steps": "2"})
        assert is_there.wait(LONG)
        receiver.shutdown()
        thread.join()
    ((headers, body),) = came
    event: Any = sdk.webhooks.unwrap(body, headers, secret=secret)

    assert (event.type, event.data.id) == ("video.completed", made.id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        sdk.webhooks.unwrap(body + b" ", headers, secret=secret)
    assert json.loads(body)["object"] == "event"


def test_voices_are_asked_for_as_other_servers_do(sdk: openai.OpenAI, tmp_path: Path) -> None:
    answer = httpx.get(f"{sdk.base_url}audio/voices", timeout=LONG).json()
    spoken = sdk.audio.speech.create(model="bark-small", voice=answer["voices"][0], input="One.")
    spoken.write_to_file(tmp_path / "speech.mp3")
    assert (tmp_path / "speech.mp3").stat().st_size > 1000
