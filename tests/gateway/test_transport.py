"""What a connection can do, on real sockets, and what httpx calls it."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from gateway.transport import MAX_WHOLE_BODY, UNSENT, AiohttpTransport
from tests.gateway.conftest import LONG

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Handler = Callable[["Peer"], Awaitable[None]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Peer:
    """The other side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def request(self) -> tuple[str, dict[str, str], bytes]:
        """Read a request: its first line, headers and body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        if "chunked" in headers.get("transfer-encoding", ""):
            body = b""
            while length := int(await self._reader.readline(), 16):
                body += await self._reader.readexactly(length)
                await self._reader.readline()
            return head[0], headers, body
        return head[0], headers, await self._reader.readexactly(int(headers.get("content-length", 0)))

    async def until_gone(self) -> None:
        """Wait until the other side has closed."""
        await self._reader.read()


class Site:
    """A server that does the same on each connection, then closes it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.num_connections = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            await self._handler(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def __aenter__(self) -> "Site":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server
        self._server.close()


def answering(answer: bytes) -> Handler:
    async def handle(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(answer)
        await peer.writer.drain()

    return handle


async def serve_well(peer: Peer) -> None:
    while True:
        await peer.request()
        peer.writer.write(OK)


@asynccontextmanager
async def client(max_connections: int = 10, **timeouts: float) -> AsyncIterator[httpx.AsyncClient]:
    timeout = httpx.Timeout(LONG, **timeouts)
    async with httpx.AsyncClient(transport=AiohttpTransport(max_connections), timeout=timeout) as http:
        yield http


class TestErrors:
    async def test_a_refused_connection(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            async with client() as http:
                with pytest.raises(httpx.ConnectError):
                    await http.post(f"http://127.0.0.1:{bound.getsockname()[1]}", content=b"x")

    async def test_a_name_that_nobody_has(self) -> None:
        async with client() as http:
            with pytest.raises(httpx.ConnectError):
                await http.post("http://nobody.invalid", content=b"x")

    async def test_a_connection_that_does_not_come_about(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            with socket.create_connection(address):  # the queue is full: the kernel drops whoever else knocks
                async with client(connect=0.2) as http:
                    with pytest.raises(httpx.ConnectTimeout):
                        await http.post(f"http://127.0.0.1:{address[1]}", content=b"x")

    async def test_no_place_in_the_pool(self) -> None:
        async def hang(peer: Peer) -> None:
            await peer.until_gone()

        async with Site(hang) as site, client(1, pool=0.05) as http:
            busy = asyncio.create_task(http.post(site.url))
            while not site.num_connections:  # noqa: ASYNC110 (the server is what is waited for)
                await asyncio.sleep(0)
            with pytest.raises(httpx.PoolTimeout):
                await http.post(site.url)
            busy.cancel()
            await asyncio.wait([busy])

    async def test_who_gives_up_can_tell_whether_anything_was_sent(self) -> None:
        async def hang(peer: Peer) -> None:
            await peer.request()
            asked.set()
            await peer.until_gone()

        asked = asyncio.Event()
        async with Site(hang) as site, AiohttpTransport(1) as transport:
            taken, waiting = httpx.Request("GET", site.url), httpx.Request("GET", site.url)
            calls = [asyncio.create_task(transport.handle_async_request(each)) for each in (taken, waiting)]
            await asked.wait()
            assert [UNSENT in each.extensions for each in (taken, waiting)] == [False, True]
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

    @pytest.mark.parametrize(
        "answer", [b"", b"HTTP/1.1 20", b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["nothing", "half a line", "another protocol"]
    )
    async def test_a_hang_up_after_the_request(self, answer: bytes) -> None:
        async with Site(answering(answer)) as site, client() as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post(site.url, content=b"x")
            assert site.num_connections == 1, "it must not be sent twice"

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nrubbish",
        ],
        ids=["declared", "chunked", "rubbish"],
    )
    async def test_half_an_answer(self, answer: bytes) -> None:
        async with Site(answering(answer)) as site, client() as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post(site.url, content=b"x")

    async def test_silence_before_the_answer(self) -> None:
        async def hang(peer: Peer) -> None:
            await peer.until_gone()

        async with Site(hang) as site, client(read=0.05) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(site.url, content=b"x")

    async def test_silence_midway(self) -> None:
        async def falter(peer: Peer) -> None:
            await peer.request()
            peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            await peer.until_gone()

        async with Site(falter) as site, client(read=0.05) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(site.url, content=b"x")


class TestConnections:
    async def test_one_serves_many_requests(self) -> None:
        async with Site(serve_well) as site, client() as http:
            for _ in range(5):
                assert (await http.post(site.url, content=b"x")).content == b"ok"
            assert site.num_connections == 1

    async def test_a_place_is_free_again_however_a_request_ends(self) -> None:
        async def vary(peer: Peer) -> None:
            line, _, _ = await peer.request()
            match line.split()[1]:
                case "/whole":
                    peer.writer.write(OK)
                case "/half":
                    peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
                case "/silent":
                    await peer.until_gone()

        async with Site(vary) as site, client(1, pool=1) as http:
            for path in ("/whole", "/half", "/nothing", "/whole"):
                try:
                    await http.post(site.url + path)
                except httpx.RemoteProtocolError:
                    assert path != "/whole"
            with pytest.raises(httpx.ReadTimeout):
                await http.post(site.url + "/silent", timeout=0.05)
            async with http.stream("POST", site.url + "/half"):
                pass
            assert (await http.post(site.url + "/whole")).content == b"ok"

    async def test_closing_midway_closes_the_connection(self) -> None:
        has_seen_leaving = asyncio.Event()

        async def stream(peer: Peer) -> None:
            await peer.request()
            peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nfirst")
            await peer.until_gone()
            has_seen_leaving.set()

        async with Site(stream) as site, client() as http:
            async with http.stream("POST", site.url) as response:
                assert await anext(response.aiter_raw()) == b"first"
            async with asyncio.timeout(LONG):
                await has_seen_leaving.wait()

    async def test_being_cancelled_while_waiting_closes_the_connection(self) -> None:
        is_asked, has_seen_leaving = asyncio.Event(), asyncio.Event()

        async def hang(peer: Peer) -> None:
            await peer.request()
            is_asked.set()
            await peer.until_gone()
            has_seen_leaving.set()

        async with Site(hang) as site, client() as http:
            waiting = asyncio.create_task(http.post(site.url))
            async with asyncio.timeout(LONG):
                await is_asked.wait()
                waiting.cancel()
                await has_seen_leaving.wait()

    async def test_an_idle_one_that_has_been_closed_is_no_error(self) -> None:
        """Whether or not the event loop has noticed by then."""
        is_read, is_closed = threading.Event(), threading.Semaphore(0)

        def answer_once_each(listener: socket.socket) -> None:
            with suppress(OSError):  # the end of the test
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(OK)
                        is_read.wait(LONG)
                        is_read.clear()
                    is_closed.release()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            thread = threading.Thread(target=answer_once_each, args=(listener,))
            thread.start()
            try:
                async with client() as http:
                    for _ in range(5):
                        assert (await http.post(url, content=b"x")).content == b"ok"
                        is_read.set()
                        assert is_closed.acquire(timeout=LONG)  # in the way of the loop: it has seen nothing yet
            finally:
                is_read.set()
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()


class TestBytes:
    async def test_cookies_are_not_kept(self) -> None:
        seen: list[str | None] = []

        async def set_cookie(peer: Peer) -> None:
            while True:
                _, headers, _ = await peer.request()
                seen.append(headers.get("cookie"))
                peer.writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: whose=first; path=/\r\ncontent-length: 0\r\n\r\n")

        async with Site(set_cookie) as site, AiohttpTransport(1) as transport:
            for _ in range(3):
                answer = await transport.handle_async_request(httpx.Request("POST", site.url))
                assert answer.headers["set-cookie"] == "whose=first; path=/"
                await answer.aread()
        assert seen == [None, None, None]

    async def test_nothing_is_added_or_unpacked(self) -> None:
        asked: list[dict[str, str]] = []

        async def packed(peer: Peer) -> None:
            asked.append((await peer.request())[1])
            peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 6\r\n\r\nas it ")

        async with Site(packed) as site, AiohttpTransport(1) as transport:
            request = httpx.Request("POST", site.url, headers={"x-one": "1"}, content=b"x")
            answer = await transport.handle_async_request(request)
            assert [chunk async for chunk in answer.aiter_raw()] == [b"as it "]
            await answer.aclose()
        assert set(asked[0]) == {"host", "x-one", "content-length"}

    async def test_a_redirect_is_an_answer(self) -> None:
        redirect = b"HTTP/1.1 307 No\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"
        async with Site(answering(redirect)) as site, client() as http:
            assert (await http.post(site.url)).status_code == 307
            assert site.num_connections == 1

    async def test_a_proxy_in_the_environment_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
        async with Site(serve_well) as site, client() as http:
            assert (await http.post(site.url)).content == b"ok"

    @pytest.mark.parametrize("is_streamed", [False, True])
    @pytest.mark.parametrize("length", [0, 5, MAX_WHOLE_BODY + 1])
    async def test_bodies_arrive_whole(self, length: int, is_streamed: bool) -> None:
        arrived: list[bytes] = []

        async def keep(peer: Peer) -> None:
            arrived.append((await peer.request())[2])
            peer.writer.write(OK)

        async def pieces() -> AsyncGenerator[bytes]:
            yield sent[: length // 2]
            yield sent[length // 2 :]

        sent = bytes(index % 251 for index in range(length))
        async with Site(keep) as site, client() as http:
            assert (await http.post(site.url, content=pieces() if is_streamed else sent)).content == b"ok"
        assert arrived == [sent]

    async def test_a_form_is_streamed_with_its_length(self) -> None:
        asked: list[tuple[str, dict[str, str], bytes]] = []

        async def keep(peer: Peer) -> None:
            asked.append(await peer.request())
            peer.writer.write(OK)

        async with Site(keep) as site, client() as http:
            await http.post(site.url, files={"image": ("image", b"\x89PNG")}, data={"seed": "7"})
        [(_, headers, body)] = asked
        assert int(headers["content-length"]) == len(body)
        assert b"\x89PNG" in body
        assert headers["content-type"].startswith("multipart/form-data; boundary=")
