"""Log lines, each with the request that it is about, as text or as JSON; the gateway and the workers share it."""

import json
import logging
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
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


class NamingFormatter(logging.Formatter):
    """Writes a record as another formatter does, and behind its first line the request."""

    def __init__(self, inner: logging.Formatter) -> None:
        """Leave the rest to `inner`."""
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Write `record`, with the id of the request where there is one."""
        line, end, rest = self._inner.format(record).partition("\n")
        served = request_id.get()
        return f"{line} (request {served}){end}{rest}" if served else f"{line}{end}{rest}"


def write_logs(handlers: Iterable[logging.Handler], form: LogFormat) -> None:
    """Let `handlers` write in one form; as JSON, Python's warnings go to them too, and what ends the process."""
    if form == "json":
        logging.captureWarnings(True)
        sys.excepthook = log_last_words
    for handler in handlers:
        if form == "json":
            handler.setFormatter(JsonFormatter())
        elif not isinstance(handler.formatter, NamingFormatter):  # loggers share handlers
            handler.setFormatter(NamingFormatter(handler.formatter or logging.Formatter()))


def log_last_words(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say what ends the process, where Python would print it."""
    logging.getLogger("atelier").critical("the process ends by an error", exc_info=(kind, error, traceback))
