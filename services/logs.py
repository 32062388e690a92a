"""Log lines as JSON, each with the request that it is about; the gateway and the workers share it."""

import json
import logging
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from opentelemetry import trace

LogFormat = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the request that is being served


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Write `record`, with the ids of the request and of its trace where there are such."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if served := request_id.get():
            line["request_id"] = served
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = trace.format_trace_id(span.trace_id)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def write_json(handlers: Iterable[logging.Handler]) -> None:
    """Let `handlers` write JSON, and Python's warnings go to them too."""
    logging.captureWarnings(True)
    for handler in handlers:
        handler.setFormatter(JsonFormatter())
