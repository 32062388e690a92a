"""HTTP to workers and providers: httpx's interface over aiohttp's connections, and httpx's words for what goes wrong.

Nothing of one request gets into another: no cookies, no redirects, no credentials or proxies from the environment, and
no second attempt. Bytes pass as they are.
"""

import asyncio
import select
import socket
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Self
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

KEEPALIVE_SECONDS = 30.0  # for idle connections: less than the 75 of our workers, so that they do not close first
MAX_WHOLE_BODY = 2**20  # bytes; aiohttp wants what is larger as a stream
MAX_URLS = 1000  # that are remembered parsed; paths are ours, but a provider's files have ids
HUNG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
SENT_BY_CALLER = frozenset({"Accept", "Accept-Encoding", "Content-Type", "User-Agent"})  # or not at all

UNSENT = "atelier.unsent"  # extension of a request that has had no connection yet: nobody can have accepted it

SocketFactory = Callable[[aiohttp.AddrInfoType], socket.socket]

under_way: ContextVar[httpx.Request] = ContextVar("under_way")  # of a task


class LiveConnector(aiohttp.TCPConnector):
    """Gives out no idle connection that the other side has closed, even if the event loop does not know yet.

    A request on one of those would be lost, and nobody could say whether it had been accepted.
    """

    def __init__(self, socket_factory: SocketFactory | None = None) -> None:
        """Verify what httpx would: its certificates, whatever the environment names."""
        context = httpx.create_ssl_context(trust_env=False)
        super().__init__(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=context, socket_factory=socket_factory)
        self._used: WeakSet[object] = WeakSet()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - as aiohttp has it
    ) -> Connection:
        """Return an open connection, idle or new.

        Raises:
            aiohttp.ClientConnectorError: also where a new one is closed before anything has been sent.
        """
        while is_hung_up(connection := await super().connect(req, traces, timeout)):
            was_idle = connection.protocol in self._used
            connection.close()
            if not was_idle:
                raise aiohttp.ClientConnectorError(req.connection_key, ConnectionResetError("closed at once"))
        self._used.add(connection.protocol)
        under_way.get().extensions.pop(UNSENT, None)  # may be there once already: aiohttp repeats some requests
        return connection


def is_hung_up(connection: Connection) -> bool:
    """Whether the other side has closed."""
    transport = connection.transport
    if transport is None or (sock := transport.get_extra_info("socket")) is None:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), HUNG_UP)
    return bool(poll.poll(0))


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Many connections, at most so many at work at once. To be made inside the event loop."""

    def __init__(self, max_connections: int, socket_factory: SocketFactory | None = None) -> None:
        """Have `max_connections` at work at most; a request beyond waits for the time that it has for the pool.

        `socket_factory` opens a socket for each address that is tried, or refuses by an OSError.
        """
        self._places = asyncio.Semaphore(max_connections)
        self._urls: dict[str, URL] = {}
        self._session = aiohttp.ClientSession(
            connector=LiveConnector(socket_factory),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=SENT_BY_CALLER,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; return what was answered, whose body has not been read and must be closed.

        Until it has a connection, `request` is marked as `UNSENT`.

        Raises:
            httpx.PoolTimeout: no place got free in time; nothing was sent.
            httpx.ConnectError: no connection; nothing was sent.
            httpx.ConnectTimeout: no connection in time; nothing was sent.
            httpx.ReadTimeout: silence; the request may be at work.
            httpx.RemoteProtocolError: the other side hung up, or speaks no HTTP; the request may have been at work.
            httpx.ReadError: the connection broke, likewise.
        """
        timeout = request.extensions.get("timeout", {})
        request.extensions[UNSENT] = True
        under_way.set(request)
        await self._take_place(timeout.get("pool"))
        try:
            answer = await self._session.request(
                request.method,
                self._parsed(str(request.url)),
                headers=headers_of(request),
                data=body_of(request),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=timeout.get("connect"), sock_read=timeout.get("read")
                ),
            )
        except aiohttp.ClientError as error:
            self._places.release()
            raise in_httpx_words(error) from error
        except UnicodeError as error:
            self._places.release()
            raise httpx.ConnectError("no host can be called so") from error
        except BaseException:
            self._places.release()
            raise
        return httpx.Response(
            answer.status, headers=answer.raw_headers, stream=AnswerStream(answer, self._places), request=request
        )

    async def _take_place(self, seconds: float | None) -> None:
        if not self._places.locked():
            await self._places.acquire()  # at once
            return
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError as error:
            raise httpx.PoolTimeout("all connections are at work") from error

    def _parsed(self, url: str) -> URL:
        if (known := self._urls.get(url)) is None:
            if len(self._urls) >= MAX_URLS:
                self._urls.clear()
            known = self._urls[url] = URL(url, encoded=True).with_user(None)  # which is the headers' business
        return known

    async def __aenter__(self) -> Self:
        """Be used."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


class AnswerStream(httpx.AsyncByteStream):
    """A body as it comes. Closing it before its end closes the connection, and the other side notices."""

    def __init__(self, answer: aiohttp.ClientResponse, places: asyncio.Semaphore) -> None:
        """Own `answer`, which holds one of `places`."""
        self._answer = answer
        self._places = places
        self._is_closed = False

    def __aiter__(self) -> Self:
        """Iterate once."""
        return self

    async def __anext__(self) -> bytes:
        """Return what has come, and wait only where that is nothing."""
        try:
            chunk = await self._answer.content.readany()
        except aiohttp.ClientError as error:
            raise in_httpx_words(error) from error
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Give the connection back if it has all been read, or else close it."""
        if not self._is_closed:
            self._is_closed = True
            self._answer.close()
            self._places.release()


def headers_of(request: httpx.Request) -> list[tuple[str, str]]:
    """The headers as aiohttp takes them; how the body is framed is aiohttp's own affair."""
    return [
        (name.decode(), value.decode("latin-1"))
        for name, value in request.headers.raw
        if name.lower() != b"transfer-encoding"
    ]


def body_of(request: httpx.Request) -> bytes | httpx.AsyncByteStream | None:
    """What aiohttp sends: bytes where they are at hand and few, or else a stream of them."""
    try:
        content = request.content
    except httpx.RequestNotRead:
        assert isinstance(request.stream, httpx.AsyncByteStream)  # noqa: S101 - as an async client builds it
        return request.stream
    if len(content) > MAX_WHOLE_BODY:
        return httpx.ByteStream(content)
    return content or None


def in_httpx_words(error: aiohttp.ClientError) -> httpx.TransportError:
    """What httpx would have raised."""
    match error:
        case aiohttp.SocketTimeoutError():
            return httpx.ReadTimeout("nothing came in time")
        case aiohttp.ServerTimeoutError():
            return httpx.ConnectTimeout("no connection in time")
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError("no connection")
        case aiohttp.ClientOSError():
            return httpx.ReadError("the connection broke")
        case _:
            return httpx.RemoteProtocolError("no whole HTTP answer")
