"""HTTP on one connection: uvicorn's, within bounds, and with our words for what is none. Knows no application."""

import asyncio
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from services.schema import envelope

MAX_HEAD_BYTES = 65_536  # of a request's line and headers, and of what follows its body
LINGER_SECONDS = 2.0  # for what the other side still sends when it has been answered already
LINGER_BYTES = 2**24


class HeadTooLong(Exception):
    """A request's head has more bytes than it may."""


class Lingering:
    """A connection that is not closed upon somebody who still sends: that would be a reset, and cost him the answer."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Stand in for `transport`."""
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None
        self._num_bytes = 0
        self.is_amid = False  # a request, whose rest is still to come
        self.write = transport.write

    def __getattr__(self, name: str) -> Any:
        """Do all else as `transport`."""
        return getattr(self._transport, name)

    @property
    def lingers(self) -> bool:
        """Whether nothing is read any more but to throw it away."""
        return self._timer is not None

    def is_closing(self) -> bool:
        """Whether there is nothing more to be said."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Say that this was all, and close when the other side does, or has had its time."""
        if self.is_closing():
            return
        if not self.is_amid:
            self._transport.close()
            return
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)
        self._transport.write_eof()
        self._transport.resume_reading()

    def ignore(self, data: bytes) -> None:
        """Throw away what comes too late."""
        self._num_bytes += len(data)
        if self._num_bytes > LINGER_BYTES:
            self._transport.close()

    def end(self) -> None:
        """Forget the time: it is closed."""
        if self._timer is not None:
            self._timer.cancel()


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request has a head without end; uvicorn and its parser would keep all of it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*arguments, **options)
        self._num_head_bytes = 0
        self._num_unparsed_bytes = 0  # that the parser has taken, and has said nothing of yet
        self._is_too_long = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._connection = Lingering(transport)
        super().connection_made(cast("asyncio.Transport", self._connection))

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._connection.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._connection.lingers:
            self._connection.ignore(data)
            return
        self._connection.is_amid = True
        self._num_unparsed_bytes += len(data)
        super().data_received(data)
        if self._num_unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._is_too_long = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._num_head_bytes = self._num_unparsed_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a piece of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Count what has come of the body as parsed."""
        self._num_unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Likewise of the rest."""
        self._num_unparsed_bytes = 0
        self._connection.is_amid = False
        super().on_message_complete()

    def _count(self, num_bytes: int) -> None:
        self._num_unparsed_bytes = 0
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._is_too_long = True
            raise HeadTooLong  # the parser stops, and the server calls `send_400_response`

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong in the envelope, and close."""
        status, message, code = HTTPStatus.BAD_REQUEST, "this is no HTTP request that can be read", "invalid_http"
        if self._is_too_long:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            message, code = f"the URL and the headers may have {MAX_HEAD_BYTES} bytes", "headers_too_large"
        body = envelope(status, message, code).model_dump_json().encode()
        head = (
            STATUS_LINE[status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"connection: close\r\n\r\n",
        )
        self.transport.write(b"".join(head) + body)
        self.transport.close()
