"""The envelope: BentoML's errors in OpenAI's shape, successes and streams untouched."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from services.envelope import EnvelopeMiddleware
from services.errors import InvalidRequest, QueueFull, render
from services.schema import ErrorEnvelope
from tests.services.conftest import LONG, Gate, served

UNEXPECTED = {"error": "An unexpected error has occurred, please check the server log."}
REFUSED = {
    "error": "1 validation error for ImageRequest",
    "detail": [
        {"type": "missing", "loc": ["prompt"], "msg": "Field required"},
        {"type": "extra_forbidden", "loc": ["n"], "msg": "Extra inputs are not permitted"},
    ],
}
gate = Gate()


async def echo(request: Request) -> Response:
    """Answer with the status in the path and the JSON in the query."""
    return JSONResponse(json.loads(request.query_params["body"]), request.path_params["status"], {"x-kept": "yes"})


async def empty(request: Request) -> Response:
    return Response(status_code=request.path_params["status"])


async def text(request: Request) -> Response:
    return PlainTextResponse("\n" if request.path_params["status"] == 200 else "no", request.path_params["status"])


async def own(request: Request) -> Response:
    return render(InvalidRequest("there is no voice 'x'", param="voice"))


async def full(request: Request) -> Response:
    return render(QueueFull("later", retry_after=5))


async def raising(request: Request) -> Response:
    raise HTTPException(503, "Service is not ready because .__is_ready__() returns False.")


async def stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        assert await asyncio.to_thread(gate.opened.wait, LONG)
        yield b"second"

    return StreamingResponse(pieces(), media_type="video/mp4")


async def long_error(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    return StreamingResponse(pieces(), 500, {"content-length": "1000000"})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    routes = [
        Route("/echo/{status:int}", echo),
        Route("/empty/{status:int}", empty),
        Route("/text/{status:int}", text),
        Route("/own", own),
        Route("/full", full),
        Route("/raising", raising),
        Route("/stream", stream),
        Route("/long", long_error),
    ]
    with served(Starlette(routes=routes, middleware=[Middleware(EnvelopeMiddleware)])) as url:
        yield url


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    return ErrorEnvelope.model_validate_json(answer.content).error.model_dump()


def echoed(url: str, status: int, body: Any) -> httpx.Response:
    return httpx.get(f"{url}/echo/{status}", params={"body": json.dumps(body)})


def test_what_bentoml_found_invalid_names_the_field(url: str) -> None:
    answer = echoed(url, 400, REFUSED)

    assert answer.status_code == 400
    assert error_of(answer) == {
        "message": "prompt: is required",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "invalid_value",
    }


def test_a_kind_that_there_is_not_is_refused_though_bentoml_leaves_out_which_there_are(url: str) -> None:
    said = "Input tag '<x>' found using kind_of() does not match any of the expected tags: '<text>', '<json_object>'"
    detail = {"type": "union_tag_invalid", "loc": ["response_format"], "msg": said}

    assert error_of(echoed(url, 400, {"error": "x", "detail": [detail]})) == {
        "message": "response_format: must have a 'type' among 'text', 'json_object'",
        "type": "invalid_request_error",
        "param": "response_format",
        "code": "invalid_value",
    }


@pytest.mark.parametrize(
    ("status", "body", "message", "code"),
    [
        (500, UNEXPECTED, UNEXPECTED["error"], "internal_server_error"),
        (415, [{"error": "pickles are not allowed"}], "pickles are not allowed", "unsupported_media_type"),
        (429, {"error": "Too many requests"}, "Too many requests", "too_many_requests"),
        (504, {"error": "Not able to process the request in 5 seconds"}, "Not able to process", "gateway_timeout"),
        (401, {"error": "Authorization error"}, "Authorization error", "unauthorized"),
        (400, {}, "Bad Request", "bad_request"),
        (400, [], "Bad Request", "bad_request"),
        (400, None, "Bad Request", "bad_request"),
        (400, "no", "Bad Request", "bad_request"),
        (400, 5, "Bad Request", "bad_request"),
        (400, {"error": None}, "Bad Request", "bad_request"),
        (400, {"error": "no", "detail": []}, "no", "bad_request"),
        (400, {"error": "no", "detail": "because"}, "no", "bad_request"),
        (418, {"error": "no"}, "no", "im_a_teapot"),
        (499, {}, "Internal Server Error", "internal_server_error"),  # a number that HTTP does not know
        (599, {"error": "no"}, "no", "internal_server_error"),
    ],
)  # fmt: skip
def test_every_form_of_error_is_put_into_the_envelope(
    url: str, status: int, body: Any, message: str, code: str
) -> None:
    answer = echoed(url, status, body)

    assert answer.status_code == status
    error = error_of(answer)
    assert error["message"].startswith(message)
    assert (error["code"], error["param"]) == (code, None)


@pytest.mark.parametrize("path", ["/empty/400", "/empty/503", "/text/405", "/raising", "/nowhere"])
def test_an_error_that_is_no_json_is_put_into_it_too(url: str, path: str) -> None:
    answer = httpx.get(url + path)

    assert answer.is_error
    error_of(answer)
    assert "__is_ready__" not in answer.text


def test_a_caller_who_is_gone_gets_something_and_the_server_goes_on(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        assert client.get("/empty/499").status_code == 499
        assert client.get("/text/200").status_code == 200


def test_an_error_in_the_envelope_stays_as_it_is(url: str) -> None:
    answer = httpx.get(f"{url}/own")

    assert error_of(answer) == {
        "message": "there is no voice 'x'",
        "type": "invalid_request_error",
        "param": "voice",
        "code": "invalid_value",
    }
    assert answer.headers["x-should-retry"] == "false"


def test_an_errors_other_headers_stay(url: str) -> None:
    assert httpx.get(f"{url}/full").headers["retry-after"] == "5"
    assert echoed(url, 400, {"error": "no"}).headers["x-kept"] == "yes"
    assert set(httpx.post(f"{url}/own").headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_head_request_gets_the_headers_alone(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        answer = client.head("/own")
        assert (answer.status_code, answer.content) == (400, b"")
        assert int(answer.headers["content-length"]) == len(client.get("/own").content)


def test_a_long_error_is_put_into_it_whole(url: str) -> None:
    answer = httpx.get(f"{url}/long")

    assert answer.status_code == 500
    assert error_of(answer)["message"] == "Internal Server Error"


@pytest.mark.parametrize("status", [200, 201, 204, 302])
def test_what_is_no_error_passes_untouched(url: str, status: int) -> None:
    answer = httpx.get(f"{url}/empty/{status}")

    assert (answer.status_code, answer.content) == (status, b"")
    assert echoed(url, 200, REFUSED).json() == REFUSED


def test_a_stream_passes_piece_by_piece(url: str) -> None:
    with httpx.stream("GET", f"{url}/stream", timeout=LONG) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"first"  # while the second is held
        gate.opened.set()
        assert b"".join(pieces) == b"second"
    assert answer.headers["content-type"] == "video/mp4"


@pytest.mark.anyio
async def test_what_is_no_request_passes_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await send({"type": "lifespan.startup.complete"})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    await EnvelopeMiddleware(app)({"type": "lifespan"}, receive, send)

    assert seen == [{"type": "lifespan"}]
    assert sent == [{"type": "lifespan.startup.complete"}]
