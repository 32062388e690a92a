"""Spans for whoever collects them, set up by OpenTelemetry's own variables; the gateway and the workers share it."""

import logging
import os
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.logs import request_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger("atelier.tracing")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})  # they are asked all day long
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PROPAGATOR = TraceContextTextMapPropagator()


def open_provider(service: str) -> "TracerProvider | None":
    """Return what makes spans and sends them over HTTP; None where nobody collects them.

    Args:
        service: its name in the traces, where `OTEL_SERVICE_NAME` says none.
    """
    if not any(map(os.environ.get, ENDPOINTS)):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("an OpenTelemetry endpoint is set, but the extra 'otel' is not installed: nothing is traced")
        return None
    is_named = "OTEL_SERVICE_NAME" in os.environ
    provider = TracerProvider(resource=Resource.create({} if is_named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # bounded: what it cannot send it drops
    return provider


class ServerSpans:
    """Makes a span of each request, without its query and without what went wrong in words: both may hold a prompt."""

    def __init__(self, app: ASGIApp, tracer: Tracer, *, trusts_callers: bool) -> None:
        """Wrap `app`; callers who are trusted say which trace a request belongs to."""
        self._app = app
        self._tracer = tracer
        self._trusts_callers = trusts_callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        status, ending = 500, "failed"

        async def receive_noting() -> Message:
            nonlocal ending
            message = await receive()
            if message["type"] == "http.disconnect" and ending == "failed":
                ending = "left"
            return message

        async def send_noting(message: Message) -> None:
            nonlocal status, ending
            status = message.get("status", status)
            if message["type"] == "http.response.body" and not message.get("more_body", False) and ending == "failed":
                ending = "complete"
            await send(message)

        span = self._begin(scope)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                await self._app(scope, receive_noting, send_noting)
            finally:
                if span.is_recording():
                    _describe(span, scope, status, ending)

    def _begin(self, scope: Scope) -> Span:
        parent = PROPAGATOR.extract(dict(Headers(scope=scope))) if self._trusts_callers else Context()
        return self._tracer.start_span(_method(scope), context=parent, kind=SpanKind.SERVER)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "_OTHER"


def _describe(span: Span, scope: Scope, status: int, ending: str) -> None:
    """Say what was served and how that ended, in the words of OpenTelemetry's semantic conventions for HTTP."""
    method = _method(scope)
    span.set_attributes(
        {
            "http.request.method": method,
            "url.scheme": scope["scheme"],
            "url.path": scope["path"],
            "network.protocol.version": scope["http_version"],
            "http.response.status_code": status,
            "atelier.request_id": request_id.get(),
            "atelier.ending": ending,
        }
    )
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    if status >= 500 or ending == "failed":
        span.set_attribute("error.type", "broken_off" if ending == "failed" else str(status))
        span.set_status(StatusCode.ERROR)
