"""Workers on real sockets: what a connection can do, and what a caller sees of it."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.gateway.conftest import LONG, Gateway, error_of, opened, raw_worker, served

SPEECH = "/generate/audio?prompt=hello"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\n"

Start = Callable[..., Gateway]


class Watcher:
    """A worker that streams until it sees that nobody is there any more."""

    def __init__(self, *, starts: bool) -> None:
        self.starts = starts
        self.is_asked = threading.Event()
        self.has_seen_leaving = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        while (await receive()).get("more_body"):
            pass
        self.is_asked.set()
        if self.starts:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.has_seen_leaving.set()


def slow_worker(num_probes: int) -> Starlette:
    """A worker that answers when it has been asked `num_probes` times whether it lives."""
    gate: Future[None] = Future()
    probes: list[Request] = []

    async def livez(request: Request) -> Response:
        probes.append(request)
        if len(probes) == num_probes:
            gate.set_result(None)
        return Response()

    async def speech(request: Request) -> Response:
        await opened(gate)
        return Response(b"at last")

    return Starlette(routes=[Route("/livez", livez), Route("/v1/audio/speech", speech, methods=["POST"])])


class TestLeaving:
    def test_leaving_before_the_first_byte_ends_the_workers_work(self, start: Start) -> None:
        worker = Watcher(starts=False)
        with served(worker) as url:
            gateway = start(url)
            connection = gateway.connect()
            connection.request("GET", SPEECH)
            assert worker.is_asked.wait(LONG)
            connection.close()

            assert worker.has_seen_leaving.wait(LONG)
            [row] = gateway.rows()
        assert (row["ending"], row["successful"], row["status"], row["bytes_out"]) == ("left", 0, 499, 0)
        assert row["first_byte_seconds"] is None

    def test_leaving_midway_ends_the_workers_work(self, start: Start) -> None:
        worker = Watcher(starts=True)
        with served(worker) as url:
            gateway = start(url)
            with gateway.client.stream("GET", SPEECH) as response:
                assert next(response.iter_raw()) == b"first"

            assert worker.has_seen_leaving.wait(LONG)
            [row] = gateway.rows()
        assert (row["ending"], row["successful"], row["status"], row["bytes_out"]) == ("left", 0, 200, 5)

    def test_leaving_while_nobody_reads_ends_the_workers_work(self, start: Start) -> None:
        """The gateway waits to write, not to read, when the caller goes."""
        has_closed = threading.Event()

        async def endless(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            message = {"type": "http.response.body", "body": bytes(1_000_000), "more_body": True}
            for _ in range(100):  # more than the sockets hold
                await send(message)
            while (await receive())["type"] != "http.disconnect":
                pass
            has_closed.set()

        with served(endless) as url:
            gateway = start(url)
            with gateway.client.stream("GET", SPEECH) as response:
                assert response.status_code == 200
            assert has_closed.wait(LONG)
            assert gateway.rows()[0]["ending"] == "left"


class TestBreaking:
    @pytest.mark.parametrize(
        "answer",
        [
            HEAD + b"content-length: 100\r\n\r\nhalf of it",
            HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ],
        ids=["declared", "chunked"],
    )
    def test_a_worker_that_is_killed_midway_breaks_the_callers_body(self, start: Start, answer: bytes) -> None:
        with raw_worker(answer) as worker:
            gateway = start(worker.url)
            with gateway.client.stream("GET", SPEECH) as response, pytest.raises(httpx.RemoteProtocolError):
                response.read()
            assert gateway.rows()[0]["ending"] == "failed"

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1 20",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nrubbish",
        ],
        ids=["nothing", "half a line", "another protocol", "rubbish"],
    )
    def test_a_worker_that_dies_before_it_answers_is_unavailable(self, start: Start, answer: bytes) -> None:
        with raw_worker(answer) as worker:
            response = start(worker.url).client.get(SPEECH)
            assert (response.status_code, error_of(response)["code"]) == (503, "worker_died")
            assert worker.num_requests == 1, "work must not be sent twice"

    def test_a_connection_that_the_worker_has_closed_is_not_used_again(self, start: Start) -> None:
        with raw_worker(HEAD + b"content-length: 2\r\n\r\nok") as worker:
            client = start(worker.url).client
            for _ in range(3):
                worker.has_closed.clear()
                assert client.get(SPEECH).content == b"ok"
                assert worker.has_closed.wait(LONG)


class TestSilence:
    def test_a_port_that_nobody_listens_on_is_an_unavailable_worker(self, start: Start) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else can take it
            response = start(f"http://127.0.0.1:{bound.getsockname()[1]}").client.get(SPEECH)
        assert (response.status_code, error_of(response)["code"]) == (503, "worker_unavailable")
        assert response.headers["x-should-retry"] == "true"
        assert int(response.headers["retry-after"]) > 0

    def test_a_worker_that_takes_connections_and_never_answers_is_given_up(self, start: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as hung:  # the kernel accepts; the process is stuck in `__init__`
            gateway = start(f"http://127.0.0.1:{hung.getsockname()[1]}", probe_interval=0.05)
            response = gateway.client.get(SPEECH)
        assert (response.status_code, error_of(response)["code"]) == (503, "worker_unavailable")
        assert response.headers["x-should-retry"] == "true"

    def test_a_full_gateway_does_not_take_a_slow_worker_for_a_dead_one(self, start: Start) -> None:
        """The one connection is taken by the work: the questions go over others."""
        with served(slow_worker(3)) as url:
            gateway = start(url, max_upstream_connections=1, probe_interval=0.2)
            assert gateway.client.get(SPEECH).content == b"at last"

    def test_who_finds_no_connection_free_is_told_to_come_back(self, start: Start) -> None:
        worker = Watcher(starts=True)
        with served(worker) as url:
            gateway = start(url, max_upstream_connections=1, connect_timeout=0.3)
            with gateway.client.stream("GET", SPEECH) as busy:
                assert busy.status_code == 200
                response = gateway.client.get(SPEECH)
        assert response.status_code == 503
        assert response.headers["x-should-retry"] == "true"
        assert "allows" in error_of(response)["message"]
