"""What a connection may send before there is a request, and what is said where there is none."""

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from gateway.protocol import MAX_HEAD_BYTES
from services.schema import ErrorEnvelope
from tests.gateway.conftest import LONG, PNG, Gateway, Workers, error_of

LINE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n"
MANY = b"".join(b"x-%d: %b\r\n" % (number, b"a" * 1000) for number in range(67))  # just too many: all of it is read
ENDLESS = b"a" * 16 * MAX_HEAD_BYTES
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
def connection(shared: tuple[Gateway, Workers]) -> Iterator[socket.socket]:
    host, port = shared[0].url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LONG) as connection:
        yield connection


def refusal(connection: socket.socket, sent: bytes) -> tuple[bytes, str | None]:
    """Send, and return the status line's number and the code in the envelope; the other side must close."""
    connection.sendall(sent)
    answer = b""
    while data := connection.recv(65_536):
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return head.split()[1], ErrorEnvelope.model_validate_json(body).error.code


def test_a_head_may_not_have_more_than_64_kib(connection: socket.socket) -> None:
    assert refusal(connection, LINE + MANY) == (b"431", "headers_too_large")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(LINE + b"x: ", id="a header"),
        pytest.param(b"GET /", id="a URL"),
        pytest.param(POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ", id="a trailer"),
    ],
)
def test_what_has_no_end_is_read_no_further(connection: socket.socket, head: bytes) -> None:
    # What is on its way when the other side closes may cost the answer.
    with suppress(ConnectionError):
        connection.sendall(head + ENDLESS)
        while connection.recv(65_536):
            pass


def test_what_is_no_http_is_answered_in_the_envelope(connection: socket.socket) -> None:
    assert refusal(connection, b"hello there\r\n\r\n") == (b"400", "invalid_http")


def test_there_are_no_websockets(shared: tuple[Gateway, Workers]) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    answer = shared[0].client.get("/v1/realtime", headers=upgrade)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


def test_requests_on_one_connection_are_counted_each_for_itself(connection: socket.socket) -> None:
    # The bodies are longer than a head may be.
    body = b"a" * MAX_HEAD_BYTES
    upload = (
        b"POST /generate/video HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        b"x: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\n"
    )
    form = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n' + PNG + body + b"\r\n--b--\r\n"
    for _ in range(3):
        connection.sendall(upload + b"content-length: %d\r\n\r\n" % len(form))
        connection.sendall(form)
        assert connection.recv(12) == b"HTTP/1.1 200"
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += connection.recv(65_536)
