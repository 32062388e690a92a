"""The gateway on a port of its own, and workers that do what a test tells them."""

import asyncio
import http.client
import socket
import socketserver
import sqlite3
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from gateway.app import create_app
from gateway.protocol import BoundedProtocol
from gateway.settings import Settings
from services.schema import envelope

LONG = 20.0  # seconds after which something counts as hung
WORKER = "http://worker.test"
TASKS = ("text", "audio", "image", "video", "mesh")
PNG = b"\x89PNG not really"

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Server(uvicorn.Server):
    """Runs an application in a thread, on a free port, as `python -m gateway` does."""

    def __init__(self, app: ASGIApp) -> None:
        options: dict[str, Any] = {"access_log": False, "proxy_headers": False, "server_header": False}
        config = uvicorn.Config(
            app,
            port=0,
            http=BoundedProtocol,
            ws="none",
            log_config=None,
            timeout_graceful_shutdown=int(LONG),
            **options,
        )
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    def run(self, sockets: Any = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.is_up.set()  # whoever waits shall see that it is not


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve `app`; give its URL. `httpx.ASGITransport` would hold a stream back until its end."""
    server = Server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.is_up.wait(LONG)
        assert server.started, "the server died while starting"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class RawWorker(socketserver.ThreadingTCPServer):
    """Answers each request with `answer`, then closes the connection."""

    daemon_threads = True

    def __init__(self, answer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), RawConnection)
        self.answer = answer
        self.num_requests = 0
        self.has_closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        super().shutdown_request(request)
        self.has_closed.set()


class RawConnection(socketserver.StreamRequestHandler):
    """One connection, one request."""

    server: RawWorker

    def handle(self) -> None:
        length, is_work = 0, self.rfile.readline().startswith(b"POST")
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        self.rfile.read(length)
        self.server.num_requests += is_work
        self.wfile.write(self.server.answer)


@contextmanager
def raw_worker(answer: bytes) -> Iterator[RawWorker]:
    with RawWorker(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Stream(httpx.AsyncByteStream):
    """A worker's body; tells when it has been closed."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.is_closed = threading.Event()

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        self.is_closed.set()


async def pieces(*chunks: bytes | Exception | Awaitable[object]) -> AsyncGenerator[bytes]:
    """Yield the bytes, raise the errors, wait for what is waited for."""
    for chunk in chunks:
        match chunk:
            case bytes():
                yield chunk
            case Exception():
                raise chunk
            case _:
                await chunk


async def opened(gate: Future[None]) -> None:
    """Wait until the test sets the result of `gate`."""
    await asyncio.shield(asyncio.wrap_future(gate))


class Workers(httpx.AsyncBaseTransport):
    """Plays all five workers: keeps what it was asked, answers as told, and knows what was not closed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Be as new."""
        self.is_alive = True
        self.readiness = 200
        self.requests: list[httpx.Request] = []
        self.num_probes = 0
        self.streams: list[Stream] = []
        self.answer: Answer = self.answer_whole
        self.is_asked = threading.Event()
        self.is_given_up = threading.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(("/livez", "/readyz")):
            return await self.health(request)
        if request.method == "GET" and not self.is_alive:
            raise httpx.ReadTimeout("silence", request=request)
        await request.aread()
        self.requests.append(request)
        self.is_asked.set()
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            self.is_given_up.set()
            raise

    async def health(self, request: httpx.Request) -> httpx.Response:
        self.num_probes += 1
        if not self.is_alive:
            raise httpx.ReadTimeout("silence", request=request)
        return httpx.Response(self.readiness if request.url.path == "/readyz" else 200, content=b"")

    async def answer_whole(self, request: httpx.Request) -> httpx.Response:
        return self.stream(b"first", b"second", b"third")

    def stream(self, *chunks: bytes | Exception | Awaitable[object], **headers: str) -> httpx.Response:
        """A success whose body does what `pieces` says."""
        body = Stream(pieces(*chunks))
        self.streams.append(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(200, headers={"content-type": "audio/wav", **named}, stream=body)

    def streams_once(self, *chunks: bytes | Exception | Awaitable[object], **headers: str) -> None:
        """Answer the next request with a stream."""

        async def answer(request: httpx.Request) -> httpx.Response:
            return self.stream(*chunks, **headers)

        self.answer = answer

    def refuses(self, status: int, body: bytes, **headers: str) -> None:
        """Answer with an error, its body as a stream, as from a socket."""

        async def answer(request: httpx.Request) -> httpx.Response:
            response = self.stream(body, **headers)
            response.status_code = status
            return response

        self.answer = answer

    def refuses_in_envelope(self, status: int, message: str, param: str | None = None, **headers: str) -> None:
        """Answer with an error as our workers render it."""
        self.refuses(status, envelope(status, message, "some_code", param).model_dump_json().encode(), **headers)

    def never_answers(self) -> None:
        """Take requests and keep silent about them."""

        async def answer(request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

        self.answer = answer

    @property
    def num_open(self) -> int:
        """Bodies that nobody closes: a caller has its answer a moment before."""
        return sum(not stream.is_closed.wait(LONG) for stream in self.streams)


class Gateway:
    """A running gateway."""

    def __init__(self, app: FastAPI, data_dir: Path) -> None:
        self._stack = ExitStack()
        self._data_dir = data_dir
        self.app = app
        self.url = self._stack.enter_context(served(app))
        self.client = self.new_client()

    def new_client(self, **options: Any) -> httpx.Client:
        return self._stack.enter_context(httpx.Client(base_url=self.url, timeout=LONG, trust_env=False, **options))

    def connect(self) -> http.client.HTTPConnection:
        """A connection to do with as a test likes."""
        host, port = self.url.removeprefix("http://").split(":")
        return self._stack.enter_context(closing(http.client.HTTPConnection(host, int(port), timeout=LONG)))

    def metrics(self) -> dict[str, Metric]:
        """The series by name, when all other requests have ended: a caller has the last byte before the books do."""
        for _ in range(1000):
            text = self.client.get("/metrics").text
            families = {family.name: family for family in text_string_to_metric_families(text)}
            if families["atelier_requests_in_progress"].samples[0].value == 1:  # the one that asks
                return families
        raise AssertionError("a request never ended")

    def close(self) -> None:
        """Wait for all requests to end, and stop."""
        self._stack.close()

    def rows(self) -> list[dict[str, Any]]:
        """Stop, and return what was written into the usage log, in the order of the requests."""
        self.close()
        with closing(sqlite3.connect(self._data_dir / "atelier.sqlite3")) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM usage ORDER BY started_at")]


def gateway_settings(data_dir: Path, worker: str = WORKER, **changes: Any) -> Settings:
    """Settings under which all five workers are at one URL."""
    urls = {f"{task}_url": worker for task in TASKS}
    return Settings(**{"data_dir": data_dir, **urls, **changes})


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def start(tmp_path: Path, workers: Workers) -> Iterator[Callable[..., Gateway]]:
    """Start a gateway, with settings of one's own; over `workers`, where no `worker` URL is given."""
    with ExitStack() as stack:

        def start_gateway(worker: str | None = None, **changes: Any) -> Gateway:
            settings = gateway_settings(tmp_path, worker or WORKER, **changes)
            gateway = Gateway(create_app(settings, None if worker else workers), tmp_path)
            stack.callback(gateway.close)
            return gateway

        yield start_gateway


@pytest.fixture
def gateway(start: Callable[..., Gateway]) -> Gateway:
    return start()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Workers]]:
    """One gateway for many questions that leave nothing behind."""
    workers, data_dir = Workers(), tmp_path_factory.mktemp("gateway")
    running = Gateway(create_app(gateway_settings(data_dir), workers), data_dir)
    yield running, workers
    running.close()


@pytest.fixture
def client(shared: tuple[Gateway, Workers]) -> httpx.Client:
    return shared[0].client


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in the envelope, which must be the whole body."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error
