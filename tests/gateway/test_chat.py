"""OpenAI's routes for text: bodies go on as they came, once they are what the worker takes."""

import json
from typing import Any

import httpx
import pytest

from services.schema import CALLER_HEADER, DEADLINE_HEADER
from tests.gateway.conftest import Gateway, Workers, error_of

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi 世界"}], "stop": "x", "n": 2},
    "/v1/completions": {"prompt": "Once", "echo": True, "stop": "x"},
    "/v1/responses": {"input": [{"role": "user", "content": "Hi"}], "text": {"format": {"type": "json_object"}}},
}

by_route = pytest.mark.parametrize("route", BODIES)


@pytest.fixture
def workers(shared: tuple[Gateway, Workers]) -> Workers:
    shared[1].forget()
    return shared[1]


@by_route
def test_a_body_goes_to_the_text_worker_byte_by_byte(client: httpx.Client, workers: Workers, route: str) -> None:
    content = json.dumps(BODIES[route], indent=3).encode()
    headers = {"content-type": "application/json", "accept": "text/event-stream", CALLER_HEADER: "somebody else"}
    response = client.post(route, content=content, headers=headers)

    assert response.content == b"firstsecondthird"
    [sent] = workers.requests
    assert (sent.method, sent.url.path) == ("POST", route)
    assert sent.content == content
    assert sent.headers["accept"] == "text/event-stream"
    assert sent.headers[CALLER_HEADER] != "somebody else"
    assert float(sent.headers[DEADLINE_HEADER]) > 0


@by_route
def test_a_worker_that_streams_is_streamed_on(client: httpx.Client, workers: Workers, route: str) -> None:
    workers.streams_once(b"data: {}\n\n", b"data: [DONE]\n\n", content_type="text/event-stream", x_seed="7")
    with client.stream("POST", route, json={**BODIES[route], "stream": True}) as response:
        assert b"".join(response.iter_raw()) == b"data: {}\n\ndata: [DONE]\n\n"

    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-seed"] == "7"


@by_route
@pytest.mark.parametrize(
    ("fields", "param"),
    [({"temperature": 9}, "temperature"), ({"audio": {}}, "audio"), ({"stream": "soon"}, "stream")],
)
def test_what_the_worker_would_refuse_never_reaches_it(
    client: httpx.Client, workers: Workers, route: str, fields: dict[str, Any], param: str
) -> None:
    response = client.post(route, json={**BODIES[route], **fields})

    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert workers.requests == []


@by_route
def test_what_only_the_worker_knows_is_told_in_its_words(client: httpx.Client, workers: Workers, route: str) -> None:
    error = {
        "message": "too long",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    workers.refuses(400, json.dumps({"error": error}).encode())
    response = client.post(route, json=BODIES[route])

    assert response.status_code == 400
    assert error_of(response) == error
