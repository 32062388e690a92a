"""Stands in for what collects OpenTelemetry's spans: keeps all that is sent over OTLP/HTTP."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.gateway.conftest import LONG, served


@dataclass(frozen=True)
class Span:
    """A span, as far as tests look at it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]


def value_of(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


class Collector:
    """Keeps spans, and the bytes that they came in."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bytes = b""
        self._arrived = threading.Condition()

    async def take(self, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        with self._arrived:
            self.bytes += body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {pair.key: value_of(pair.value) for pair in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [read(span, str(names["service.name"])) for span in scope.spans]
            self._arrived.notify_all()
        return Response(media_type="application/x-protobuf")

    def wait_for(self, number: int) -> list[Span]:
        """The spans, when there are so many."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.spans) >= number, LONG), self.spans
            return list(self.spans)

    @contextmanager
    def serve(self) -> Iterator[dict[str, str]]:
        """Give the variables under which spans come here."""
        with served(Starlette(routes=[Route("/v1/traces", self.take, methods=["POST"])])) as url:
            yield {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}


def read(span: Any, service: str) -> Span:
    attributes = {pair.key: value_of(pair.value) for pair in span.attributes}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return Span(service, span.name, *ids, attributes)
