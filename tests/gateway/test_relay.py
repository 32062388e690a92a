"""What a worker says instead of a result, how long it is waited for, and what of it a caller sees."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future

import httpx
import pytest

from tests.gateway.conftest import PNG, Gateway, Workers, error_of, opened

SPEECH = "/generate/audio?prompt=hello"


@pytest.fixture
def workers(shared: tuple[Gateway, Workers]) -> Workers:
    shared[1].forget()
    return shared[1]


@pytest.fixture
def gateway(shared: tuple[Gateway, Workers], workers: Workers) -> Gateway:
    return shared[0]


class TestRefusal:
    def test_the_workers_own_words_pass(self, gateway: Gateway, workers: Workers) -> None:
        workers.refuses_in_envelope(429, "too many wait", retry_after="17", x_should_retry="true")

        response = gateway.client.get(SPEECH)

        assert response.status_code == 429
        assert error_of(response) == {
            "message": "too many wait",
            "type": "rate_limit_error",
            "param": None,
            "code": "some_code",
        }
        assert (response.headers["retry-after"], response.headers["x-should-retry"]) == ("17", "true")
        assert workers.num_open == 0

    @pytest.mark.parametrize(
        ("route", "theirs", "ours"),
        [
            ("/generate/audio", "voice", "preset"),
            ("/generate/audio", "input", "prompt"),
            ("/generate/audio", "model", "model"),
            ("/generate/text", "messages", "prompt"),
            ("/generate/image", "prompt", "prompt"),
        ],
    )
    def test_a_field_has_the_callers_name(
        self, gateway: Gateway, workers: Workers, route: str, theirs: str, ours: str
    ) -> None:
        workers.refuses_in_envelope(400, f"{theirs}: is not good: {theirs}", theirs)
        error = error_of(gateway.client.get(route, params={"prompt": "x"}))
        assert (error["param"], error["message"]) == (ours, f"{ours}: is not good: {theirs}")

    def test_an_uploaded_picture_has_the_callers_name(self, gateway: Gateway, workers: Workers) -> None:
        workers.refuses_in_envelope(400, "this is no picture", "input_reference")
        response = gateway.client.post("/generate/video", files={"image": PNG})
        assert (response.status_code, error_of(response)["param"]) == (400, "image")

    @pytest.mark.parametrize(
        ("status", "should_retry", "retry_after"),
        [(400, "false", None), (429, "true", "3"), (500, "false", None), (503, "true", "3"), (504, "false", None)],
    )
    def test_whether_to_repeat_follows_from_the_status_where_the_worker_does_not_say(
        self, gateway: Gateway, workers: Workers, status: int, should_retry: str, retry_after: str | None
    ) -> None:
        workers.refuses_in_envelope(status, "no")
        headers = gateway.client.get(SPEECH).headers
        assert (headers["x-should-retry"], headers.get("retry-after")) == (should_retry, retry_after)

    def test_a_repeat_that_makes_no_sense_stays_so(self, gateway: Gateway, workers: Workers) -> None:
        workers.refuses_in_envelope(503, "it will not load", x_should_retry="false")
        headers = gateway.client.get(SPEECH).headers
        assert headers["x-should-retry"] == "false"
        assert "retry-after" not in headers

    @pytest.mark.parametrize(
        "body",
        [
            b'{"error": "in /srv/site-packages/bentoml/_internal/server.py: boom"}',
            b'[{"error": "torch.cuda.OutOfMemoryError", "detail": [{"loc": ["/srv"], "msg": "torch"}]}]',
            b'Traceback (most recent call last):\n  File "/srv/torch/nn.py", line 1\nKeyError',
            b'{"error": {"message": "torch at /srv", "type": "x", "param": {"a": []}, "code": null}}',
            b'{"error": {"message": ["torch"], "type": "x"}}',
            b'{"error": null}',
            b"[" * 60_000,
            b'{"error": {"message": "torch ' + b"a" * 100_000 + b'", "type": "x"}}',
            b"\xff\xfe",
            b"",
        ],
    )
    @pytest.mark.parametrize(
        ("status", "shown", "words"),
        [
            (422, 422, "the worker answered 422 "),
            (599, 599, "the worker answered 599 "),
            (404, 503, "the worker for this takes no connections"),
            (503, 503, "the worker for this takes no connections"),
            (500, 503, "the worker went away"),
            (502, 503, "the worker went away"),
        ],
    )
    def test_what_is_in_no_envelope_is_not_shown(
        self, gateway: Gateway, workers: Workers, status: int, shown: int, words: str, body: bytes
    ) -> None:
        workers.refuses(status, body)

        response = gateway.client.get(SPEECH)

        assert response.status_code == shown
        assert error_of(response)["message"].startswith(words)
        assert not [word for word in ("/srv", "torch", "bentoml", "Traceback") if word in response.text]
        assert workers.num_open == 0

    def test_a_broken_error_is_an_error_all_the_same(self, gateway: Gateway, workers: Workers) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            response = workers.stream(b'{"error": ', httpx.ReadError("killed"))
            response.status_code = 500
            return response

        workers.answer = answer
        response = gateway.client.get(SPEECH)
        assert (response.status_code, error_of(response)["code"]) == (503, "worker_died")
        assert workers.num_open == 0

    def test_a_redirect_is_not_followed_nor_passed_on(self, gateway: Gateway, workers: Workers) -> None:
        workers.refuses(307, b"", location="http://169.254.169.254/latest/meta-data")
        response = gateway.client.get(SPEECH)
        assert (response.status_code, len(workers.requests)) == (502, 1)
        assert "location" not in response.headers
        error_of(response)


class TestWait:
    """Before the first byte."""

    def test_a_worker_that_refuses_the_connection_may_be_asked_again(self, gateway: Gateway, workers: Workers) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("[Errno 111] Connection refused", request=request)

        workers.answer = answer
        response = gateway.client.get(SPEECH)
        assert (response.status_code, error_of(response)["code"]) == (503, "worker_unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["x-should-retry"] == "true"
        assert "Errno" not in response.text

    @pytest.mark.parametrize("error", [httpx.ReadError("reset"), httpx.RemoteProtocolError("disconnected")])
    def test_work_that_a_dying_worker_took_along_is_not_repeated_by_itself(
        self, gateway: Gateway, workers: Workers, error: Exception
    ) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            raise error

        workers.answer = answer
        response = gateway.client.get(SPEECH)
        assert (response.status_code, error_of(response)["code"]) == (503, "worker_died")
        assert response.headers["x-should-retry"] == "false"

    def test_a_worker_that_is_silent_and_dead_is_given_up(
        self, start: Callable[..., Gateway], workers: Workers
    ) -> None:
        gateway = start(probe_interval=0.02)
        workers.is_alive = False
        workers.never_answers()

        response = gateway.client.get(SPEECH)

        assert (response.status_code, error_of(response)["code"]) == (503, "worker_unavailable")
        assert response.headers["x-should-retry"] == "true"
        assert workers.is_given_up.wait(0)

    def test_a_worker_that_is_silent_and_alive_is_waited_for_until_the_deadline(
        self, start: Callable[..., Gateway], workers: Workers
    ) -> None:
        gateway = start(probe_interval=0.02, deadline=0.5)
        workers.never_answers()

        response = gateway.client.get(SPEECH)

        assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
        assert response.headers["x-should-retry"] == "false"
        assert workers.num_probes
        assert workers.is_given_up.wait(0)

    def test_a_worker_that_comes_back_to_life_is_waited_for(
        self, start: Callable[..., Gateway], workers: Workers
    ) -> None:
        gateway = start(probe_interval=0.02)
        gate: Future[None] = Future()
        health = workers.health

        asked = itertools.count(1)

        async def faltering(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/livez":
                number = next(asked)
                workers.is_alive = number % 2 == 0  # every other question is answered
                if number == 6:
                    gate.set_result(None)
            return await health(request)

        async def answer(request: httpx.Request) -> httpx.Response:
            await opened(gate)
            return workers.stream(b"at last")

        workers.health, workers.answer = faltering, answer  # type: ignore[method-assign]
        assert gateway.client.get(SPEECH).content == b"at last"

    def test_an_error_that_does_not_end_is_given_up(self, start: Callable[..., Gateway], workers: Workers) -> None:
        gateway = start(deadline=0.2)

        async def answer(request: httpx.Request) -> httpx.Response:
            response = workers.stream(b'{"error": ', opened(Future()))
            response.status_code = 500
            return response

        workers.answer = answer
        assert gateway.client.get(SPEECH).status_code == 504
        assert gateway.rows()[0]["ending"] == "complete"
        assert workers.num_open == 0
