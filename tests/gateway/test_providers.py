"""Outside model servers, played by a server that speaks OpenAI's chat completions."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from gateway.app import create_app
from tests.gateway.conftest import LONG, Gateway, Workers, error_of, gateway_settings, served

KEY = "sk-very-secret-0123456789"
ROUTE = "/generate/openai/text?prompt=What+is+2%2B2%3F"

Start = Callable[..., Gateway]


def completion(content: object) -> bytes:
    message = {"role": "assistant", "content": content}
    return json.dumps({"id": "x", "choices": [{"index": 0, "message": message}], "usage": {}}).encode()


class OpenAI:
    """Answers with what it is given, or not at all; keeps what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.body: bytes | None = completion("It is 4.")
        self.path = ""
        self.headers: dict[bytes, bytes] = {}
        self.sent: Any = None
        self.is_asked = threading.Event()
        self.has_seen_leaving = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        self.path, self.headers, self.sent = scope["path"], dict(scope["headers"]), json.loads(body)
        self.is_asked.set()
        if self.body is None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.has_seen_leaving.set()
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"www-authenticate", self.headers.get(b"authorization", b"")),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAI]:
    server = OpenAI()
    with served(server) as server.url:
        yield server


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, server: OpenAI) -> Iterator[httpx.Client]:
    data_dir = tmp_path_factory.mktemp("gateway")
    changes = {"openai_base_url": f"{server.url}/v1/", "openai_api_key": KEY, "openai_model": "gpt-x"}
    running = Gateway(create_app(gateway_settings(data_dir, **changes)), data_dir)
    yield running.client
    running.close()


Ask = Callable[[int, bytes], httpx.Response]


@pytest.fixture
def ask(client: httpx.Client, server: OpenAI) -> Ask:
    def ask_provider(status: int, body: bytes) -> httpx.Response:
        server.status, server.body = status, body
        response = client.get(ROUTE)
        assert KEY not in response.text
        assert KEY not in str(response.headers)
        return response

    return ask_provider


@pytest.fixture(autouse=True)
def _the_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


def test_an_answer_is_the_text_alone(ask: Ask, server: OpenAI) -> None:
    response = ask(200, completion("It is 4."))

    assert (response.status_code, response.text) == (200, "It is 4.")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert server.path == "/v1/chat/completions"
    assert server.headers[b"authorization"] == f"Bearer {KEY}".encode()
    assert server.sent == {"model": "gpt-x", "messages": [{"role": "user", "content": "What is 2+2?"}]}


def test_without_a_provider_the_operator_is_told_what_to_set(gateway: Gateway, workers: Workers) -> None:
    response = gateway.client.get(ROUTE)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (503, "provider_not_configured")
    assert "ATELIER_OPENAI_BASE_URL" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert workers.requests == []


@pytest.mark.parametrize("status", [301, 401, 403, 404, 500, 503])
def test_a_refusal_is_a_bad_gateway_without_the_providers_words(ask: Ask, status: int) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    response = ask(status, body)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (502, "provider_failed")
    assert error["message"] == f"the provider answered {status}"
    assert "www-authenticate" not in response.headers


def test_what_is_wrong_with_the_prompt_is_told_in_the_providers_words(ask: Ask) -> None:
    error = {"message": "messages: too long", "type": "x", "param": "messages", "code": "context_length_exceeded"}
    response = ask(400, json.dumps({"error": error}).encode())
    said = error_of(response)
    assert (response.status_code, said["code"]) == (400, "context_length_exceeded")
    assert (said["message"], said["param"]) == ("prompt: too long", "prompt")


@pytest.mark.parametrize("field", ["message", "code", "param"])
def test_words_with_the_key_in_them_are_not_told(ask: Ask, field: str) -> None:
    error = {"message": "no", "type": "x", "param": None, "code": None, field: f"not with {KEY}"}
    response = ask(400, json.dumps({"error": error}).encode())
    assert (response.status_code, error_of(response)["message"]) == (502, "the provider answered 400")


def test_a_busy_provider_is_asked_again_later(ask: Ask) -> None:
    response = ask(429, b"slow down")
    assert (response.status_code, error_of(response)["code"]) == (429, "provider_busy")
    assert response.headers["x-should-retry"] == "true"
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "body",
    [
        b"<html>a captive portal</html>",
        b"",
        b"[" * 100_000,
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"error": "no"}',
        completion(None),
        completion([{"type": "text", "text": "parts"}]),
    ],
)
def test_what_is_no_completion_is_a_bad_gateway(ask: Ask, body: bytes) -> None:
    response = ask(200, body)
    assert (response.status_code, error_of(response)["code"]) == (502, "provider_failed")


@pytest.fixture
def hanging() -> Iterator[OpenAI]:
    server = OpenAI()
    server.body = None
    with served(server) as server.url:
        yield server


def test_a_provider_that_hangs_is_given_up_at_the_deadline(start: Start, hanging: OpenAI) -> None:
    gateway = start(hanging.url, openai_base_url=hanging.url, openai_api_key=KEY, deadline=0.2)
    response = gateway.client.get(ROUTE)
    assert (response.status_code, error_of(response)["code"]) == (502, "provider_failed")
    assert hanging.has_seen_leaving.wait(LONG)


def test_a_provider_that_is_not_there_is_a_bad_gateway(start: Start) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        response = start(url, openai_base_url=url, openai_api_key=KEY).client.get(ROUTE)
    assert (response.status_code, error_of(response)["code"]) == (502, "provider_failed")


def test_leaving_ends_the_providers_work(start: Start, hanging: OpenAI) -> None:
    gateway = start(hanging.url, openai_base_url=hanging.url, openai_api_key=KEY)
    connection = gateway.connect()
    connection.request("GET", ROUTE)
    assert hanging.is_asked.wait(LONG)
    connection.close()
    assert hanging.has_seen_leaving.wait(LONG)
    assert gateway.rows()[0]["ending"] == "left"


def test_without_a_key_none_is_sent(start: Start, server: OpenAI) -> None:
    server.status, server.body = 200, completion("It is 4.")
    assert start(server.url, openai_base_url=server.url).client.get(ROUTE).text == "It is 4."
    assert b"authorization" not in server.headers
