"""HTTP on one connection: uvicorn's, within bounds, and with our words for what is none. Knows no application."""

from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from services.schema import envelope

MAX_HEAD_BYTES = 65_536  # of a request's line and headers, and of what follows its body


class HeadTooLong(Exception):
    """A request's head has more bytes than it may."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request has a head without end; uvicorn and its parser would keep all of it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*arguments, **options)
        self._num_head_bytes = 0
        self._num_unparsed_bytes = 0  # that the parser has taken, and has said nothing of yet
        self._is_too_long = False

    def data_received(self, data: bytes) -> None:
        """Read on."""
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
