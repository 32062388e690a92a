"""Spans of what the gateway asks of others; they end when the answer's last byte is there, or nobody wants it."""

from collections.abc import AsyncIterator

import httpx
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context

from services.schema import DEADLINE_HEADER
from services.tracing import PROPAGATOR


class TracedTransport(httpx.AsyncBaseTransport):
    """Makes a span of each request, and tells workers which trace they belong to; providers it tells nothing."""

    def __init__(self, transport: httpx.AsyncBaseTransport, tracer: Tracer) -> None:
        """Wrap `transport`."""
        self._transport = transport
        self._tracer = tracer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        span = self._tracer.start_span(
            f"{request.method} {request.url.path}",
            kind=SpanKind.CLIENT,
            attributes={
                "http.request.method": request.method,
                "server.address": request.url.host,
                "server.port": request.url.port or {"http": 80, "https": 443}[request.url.scheme],
                "url.full": str(request.url.copy_with(query=None, username="", password="")),
            },
        )
        if DEADLINE_HEADER in request.headers:
            PROPAGATOR.inject(request.headers, set_span_in_context(span))
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException as error:
            fail(span, error)
            raise
        span.set_attribute("http.response.status_code", response.status_code)
        if response.is_error:
            span.set_attribute("error.type", str(response.status_code))
            span.set_status(StatusCode.ERROR)
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - what asynchronous transports return
        response.stream = TracedStream(response.stream, span)
        return response

    async def aclose(self) -> None:
        """Close the wrapped one."""
        await self._transport.aclose()


class TracedStream(httpx.AsyncByteStream):
    """An answer's body, and the span that ends with it."""

    def __init__(self, stream: httpx.AsyncByteStream, span: Span) -> None:
        """Own both."""
        self._stream = stream
        self._span = span

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pass the body on."""
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx.HTTPError as error:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(StatusCode.ERROR)
            raise

    async def aclose(self) -> None:
        """Close; the span has ended."""
        try:
            await self._stream.aclose()
        finally:
            self._span.end()


def fail(span: Span, error: BaseException) -> None:
    """End a span of what came to nothing, with the error's name and not its words."""
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(StatusCode.ERROR)
    span.end()
