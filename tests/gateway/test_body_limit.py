"""How long a body may be, and how little of a longer one is read."""

import asyncio
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.app import FORM_ALLOWANCE
from gateway.middleware import BodyLimit
from tests.gateway.conftest import LONG, Gateway, Workers, error_of

SPEECH = "/generate/audio?prompt=hello"
MAX_UPLOAD = 1000
MAX_BODY = MAX_UPLOAD + FORM_ALLOWANCE

Start = Callable[..., Gateway]


def form(num_bytes: int) -> bytes:
    """A multipart body of exactly that length, with one file in it."""
    head = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
    tail = b"\r\n--b--\r\n"
    return head + bytes(num_bytes - len(head) - len(tail)) + tail


def upload(headers: str) -> bytes:
    """The head of an upload."""
    kind = "content-type: multipart/form-data; boundary=b"
    return f"POST /generate/video HTTP/1.1\r\nhost: localhost\r\n{kind}\r\n{headers}\r\n\r\n".encode()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def read_to_the_end(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    answer = b""
    while data := connection.recv(65_536):
        answer += data
    return answer


class TestBodyLimit:
    @pytest.fixture
    def gateway(self, start: Start) -> Gateway:
        return start(max_upload_bytes=MAX_UPLOAD)

    @pytest.fixture
    def connection(self, gateway: Gateway) -> Iterator[socket.socket]:
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=LONG) as connection:
            yield connection

    def check_refused(self, answer: bytes, gateway: Gateway, workers: Workers) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in head.lower()
        assert b"x-api-request-id: " in head.lower()
        assert b"x-response-time: " in head.lower()
        assert error_of(httpx.Response(413, content=body))["code"] == "payload_too_large"
        [row] = gateway.rows()
        assert (row["status"], row["ending"], row["successful"]) == (413, "complete", 0)
        assert workers.requests == []

    @pytest.mark.parametrize("expectation", ["", "\r\nexpect: 100-continue"])
    def test_a_declared_length_is_refused_before_the_body_is_sent(
        self, gateway: Gateway, workers: Workers, connection: socket.socket, expectation: str
    ) -> None:
        connection.sendall(upload(f"content-length: 200000000{expectation}"))
        self.check_refused(read_to_the_end(connection), gateway, workers)

    def test_an_undeclared_length_is_refused_when_it_gets_there(
        self, gateway: Gateway, workers: Workers, connection: socket.socket
    ) -> None:
        connection.sendall(upload("transfer-encoding: chunked") + chunk(form(MAX_BODY + 100)[:-50]))  # it goes on
        self.check_refused(read_to_the_end(connection), gateway, workers)

    def test_who_sends_all_of_it_first_reads_the_answer(
        self, gateway: Gateway, workers: Workers, connection: socket.socket
    ) -> None:
        connection.sendall(upload("content-length: 10000000"))
        connection.sendall(bytes(10_000_000))  # more than fits between the two
        self.check_refused(read_to_the_end(connection), gateway, workers)

    @pytest.mark.parametrize("path", ["/no/such/route", "/livez", "/docs"])
    def test_no_route_takes_more(self, gateway: Gateway, path: str) -> None:
        assert gateway.client.post(path, content=bytes(MAX_BODY + 1)).status_code == 413

    def test_what_just_fits_is_taken(self, gateway: Gateway, workers: Workers) -> None:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        fits, too_long = form(MAX_BODY), form(MAX_BODY + 1)
        assert gateway.client.post("/generate/video", content=fits, headers=headers).status_code == 200
        assert gateway.client.post("/generate/video", content=iter([fits]), headers=headers).status_code == 200
        assert len(workers.requests) == 2
        refusal = gateway.client.post("/generate/video", content=too_long, headers=headers)
        assert refusal.status_code == 413
        assert error_of(refusal)["param"] == "image"
        assert gateway.client.post("/generate/video", content=iter([too_long]), headers=headers).status_code == 413
        assert len(workers.requests) == 2

    def test_a_body_that_grows_while_the_worker_works_ends_the_work(
        self, gateway: Gateway, workers: Workers, connection: socket.socket
    ) -> None:
        workers.never_answers()
        connection.sendall(f"GET {SPEECH} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        assert workers.is_asked.wait(LONG)
        connection.sendall(chunk(bytes(MAX_BODY + 1)))
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 413 ")
        assert workers.is_given_up.wait(LONG)

    def test_leaving_in_the_middle_of_an_upload_is_no_failure_of_ours(
        self, gateway: Gateway, workers: Workers, connection: socket.socket, caplog: pytest.LogCaptureFixture
    ) -> None:
        connection.sendall(upload("content-length: 2000\r\nexpect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # the form is being read
        connection.sendall(form(2000)[:1000])
        connection.close()

        [row] = gateway.rows()
        assert (row["ending"], row["successful"]) == ("left", 0)
        assert workers.requests == []
        assert not [record for record in caplog.records if record.exc_info]

    def test_reading_stops_at_the_limit(self) -> None:
        num_read = 0
        sent: list[Message] = []

        async def receive() -> Message:
            nonlocal num_read
            num_read += 1
            return {"type": "http.request", "body": bytes(10), "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            assert await receive() == {"type": "http.disconnect"}
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"the form is broken"})

        asyncio.run(BodyLimit(app, 25)({"type": "http", "path": "/", "headers": []}, receive, send))

        assert num_read == 3
        assert sent[0]["status"] == 413
