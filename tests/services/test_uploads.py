"""Uploads: a file and its fields, read no further than the limit."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.responses import rendered
from services.uploads import FIELDS_ALLOWANCE, JsonBodies, missing, read_form
from tests.services.conftest import LONG, connect, served

MAX_BYTES = 100_000
LIMIT = MAX_BYTES + FIELDS_ALLOWANCE
BOUNDARY = "limit"


class Upload:
    """A route that reads a form, and what became of it."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.statuses: list[int] = []
        self.is_over = threading.Event()

    async def __call__(self, request: Request) -> Response:
        receive = request.receive

        async def counted() -> Any:
            message = await receive()
            self.num_bytes += len(message.get("body", b""))
            return message

        response = await rendered(self._answer(Request(request.scope, counted)))
        self.statuses.append(response.status_code)
        self.is_over.set()
        return response

    async def _answer(self, request: Request) -> Response:
        files, fields = await read_form(request, ["file"], MAX_BYTES)
        if "file" not in files:
            raise missing("file")
        return JSONResponse({"num_bytes": len(files["file"]), "fields": dict(fields)})


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[str, list[Upload]]]:
    """One server for all; the last upload in the list is the present test's."""
    uploads: list[Upload] = []

    async def answer(request: Request) -> Response:
        return await uploads[-1](request)

    with served(Starlette(routes=[Route("/", answer, methods=["POST"])])) as url:
        yield url, uploads


@pytest.fixture
def upload(site: tuple[str, list[Upload]]) -> Upload:
    site[1].append(Upload())
    return site[1][-1]


@pytest.fixture
def url(upload: Upload, site: tuple[str, list[Upload]]) -> str:
    return site[0]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def head(length: str) -> bytes:
    return (
        f"POST / HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n{length}\r\n\r\n"
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    ).encode()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def test_a_form_is_a_file_and_its_fields_as_text(url: str) -> None:
    answer = httpx.post(url, files={"file": b"abc"}, data={"seed": "123", "size": "64x64", "name": "Grüße"})

    assert answer.json() == {"num_bytes": 3, "fields": {"seed": "123", "size": "64x64", "name": "Grüße"}}


@pytest.mark.parametrize("size", [0, 1, MAX_BYTES, LIMIT - 1000])
def test_a_file_up_to_the_limit_is_read_whole(url: str, size: int) -> None:
    assert httpx.post(url, files={"file": bytes(size)}).json()["num_bytes"] == size


def test_a_file_beyond_the_limit_is_refused_by_its_announced_length(url: str, upload: Upload) -> None:
    with connect(url) as connection:
        connection.sendall(head("Content-Length: 200000000"))
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert upload.num_bytes == 0


def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(url: str, upload: Upload) -> None:
    top, body = head("Transfer-Encoding: chunked").split(b"\r\n\r\n", 1)
    with connect(url) as connection:
        connection.sendall(top + b"\r\n\r\n" + chunk(body))
        with contextlib.suppress(OSError):  # the server closes the connection
            for _ in range(500):
                connection.sendall(chunk(bytes(10_000)))
                if upload.is_over.is_set():
                    break
        assert upload.is_over.wait(LONG)

    assert upload.num_bytes <= LIMIT + 2**19  # what the server reads at once
    assert upload.statuses == [413]


def test_an_error_names_the_limit(url: str) -> None:
    answer = httpx.post(url, files={"file": bytes(LIMIT + 1)})

    assert answer.status_code == 413
    assert error_of(answer)["code"] == "payload_too_large"
    assert str(LIMIT) in error_of(answer)["message"]


@pytest.mark.parametrize(
    "form",
    [
        {"json": {"file": "abc"}},
        {"content": b"abc"},
        {},
        {"data": {"file": "abc"}},
        {"files": {"picture": b"abc"}},
        {"files": [("file", b"abc"), ("file", b"def")]},
        {"files": {"file": b"abc"}, "data": {"name": "x" * (FIELDS_ALLOWANCE + 1)}},
        {"content": b"no boundary", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"--x\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"files": {"file": b"abc"}, "data": {f"field{number}": "" for number in range(1001)}},
    ],
    ids=lambda form: "-".join(form),
)  # fmt: skip
def test_what_is_no_form_with_one_file_is_refused_by_the_files_name(url: str, form: Any) -> None:
    answer = httpx.post(url, **form)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "file"


def test_a_file_that_nobody_asked_for_is_a_field_without_text(url: str) -> None:
    answer = httpx.post(url, files={"file": b"abc", "markup": b"abc"})

    assert answer.json() == {"num_bytes": 3, "fields": {"markup": ""}}  # which every contract refuses by its name


def test_who_leaves_while_uploading_is_no_error(url: str, upload: Upload, caplog: pytest.LogCaptureFixture) -> None:
    with connect(url) as connection:
        connection.sendall(head("Content-Length: 100000") + b"x" * 1000)
    assert upload.is_over.wait(LONG)

    assert upload.statuses == [499]
    assert [record for record in caplog.records if record.name.startswith("atelier")] == []


async def swallow(request: Request) -> Response:
    """A route as BentoML has them: whatever goes wrong with the body is a 500."""
    try:
        return JSONResponse({"num_bytes": len(await request.body())})
    except Exception:
        return JSONResponse({"error": "unexpected"}, 500)


JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def limited_url() -> Iterator[str]:
    with served(
        JsonBodies(
            Starlette(routes=[Route("/", swallow, methods=["POST"]), Route("/form", swallow, methods=["POST"])]),
            max_bytes=1000,
            forms={"/form"},
        )
    ) as url:
        yield url


@pytest.mark.parametrize(
    "media_type", ["multipart/form-data; boundary=a", "application/x-www-form-urlencoded", "text/plain", ""]
)
def test_what_is_no_json_is_refused_by_its_type(limited_url: str, media_type: str) -> None:
    answer = httpx.post(limited_url, content=b"prompt=x", headers={"content-type": media_type})

    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")


def test_json_with_a_charset_is_json(limited_url: str) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert httpx.post(limited_url, content=b"{}", headers=headers).json() == {"num_bytes": 2}


def test_a_route_with_a_form_looks_after_its_body_itself(limited_url: str) -> None:
    assert httpx.post(f"{limited_url}/form", content=b"x" * 5000).json() == {"num_bytes": 5000}


def test_a_body_up_to_the_limit_reaches_the_route(limited_url: str) -> None:
    assert httpx.post(limited_url, content=b"x" * 1000, headers=JSON).json() == {"num_bytes": 1000}


@pytest.mark.parametrize("body", [b"x" * 1001, iter([b"x" * 600, b"x" * 600])], ids=["announced", "chunked"])
def test_a_body_beyond_the_limit_is_refused_whatever_the_route_makes_of_it(limited_url: str, body: Any) -> None:
    answer = httpx.post(limited_url, content=body, headers=JSON)

    assert (answer.status_code, error_of(answer)["code"]) == (413, "payload_too_large")
    assert answer.headers["connection"] == "close"
