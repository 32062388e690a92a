"""The gateway's Prometheus series: one registry an application, so that several can live in a process."""

import time
from collections.abc import Iterable
from contextlib import AsyncExitStack

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from services.registry import WORKERS, Task

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
OTHER = "other"
TASKS: dict[str, Task] = {  # of the workers' routes
    "/v1/chat/completions": "text",
    "/v1/completions": "text",
    "/v1/responses": "text",
    "/v1/audio/speech": "audio",
    "/v1/images/generations": "image",
    "/v1/images/edits": "image",
    "/v1/videos": "video",
    "/v1/3d/generations": "mesh",
}


class Metrics:
    """What the gateway counts.

    Callers cannot make series: `route` is the route's template, `model` one of the registry's, `reason` the code of one
    of our errors.
    """

    def __init__(self, models: Iterable[str]) -> None:
        """Register the series; `models` are the ids of the registry's."""
        self.registry = registry = CollectorRegistry()
        self._models = frozenset(models)
        labels = ("method", "route")
        self._requests = Counter("atelier_requests", "Requests ended", (*labels, "status", "ending"), registry=registry)
        self._response_seconds = Histogram(
            "atelier_response_seconds", "From arrival to the last byte", labels, buckets=SECONDS, registry=registry
        )
        self._first_byte_seconds = Histogram(
            "atelier_first_byte_seconds", "From arrival to the headers", labels, buckets=SECONDS, registry=registry
        )
        self.in_progress = Gauge("atelier_requests_in_progress", "Requests under way", registry=registry)
        in_progress = Gauge(
            "atelier_upstream_in_progress", "Requests under way that wait for workers", ("task",), registry=registry
        )
        seconds = Histogram(
            "atelier_upstream_seconds",
            "From asking a worker to the last byte of its answer",
            ("task",),
            buckets=SECONDS,
            registry=registry,
        )
        self._upstream = {task: (in_progress.labels(task), seconds.labels(task)) for task in (*WORKERS, OTHER)}
        self._answers = Counter("atelier_answers", "Answers of models", ("model", "ending"), registry=registry)
        self.refusals = Counter(
            "atelier_refusals", "Requests refused, or failed, by why", ("reason",), registry=registry
        )
        self.usage_dropped = Counter(
            "atelier_usage_records_dropped", "Usage records that were never written", registry=registry
        )
        ProcessCollector(registry=registry)
        self._of: dict[tuple[str, str, str, str], tuple[Counter, Histogram, Histogram]] = {}

    def of(self, method: str, route: str, status: int, ending: str) -> tuple[Counter, Histogram, Histogram]:
        """Return the series of requests like this one: their number, and seconds to the last and to the first byte.

        They are kept, as finding them takes longer than counting; there are as many as there are series.
        """
        labels = method, route, str(status), ending
        if (found := self._of.get(labels)) is None:
            found = self._of[labels] = (
                self._requests.labels(*labels),
                self._response_seconds.labels(method, route),
                self._first_byte_seconds.labels(method, route),
            )
        return found

    def upstream(self, path: str, until: AsyncExitStack) -> None:
        """Count and time what a worker's route is asked for, until the request has ended."""
        in_progress, seconds = self._upstream[TASKS.get(path, OTHER)]
        began = time.perf_counter()

        def end() -> None:
            in_progress.dec()
            seconds.observe(time.perf_counter() - began)

        in_progress.inc()
        until.callback(end)

    def count_answer(self, model: str, ending: str) -> None:
        """Count an answer that a model gave."""
        self._answers.labels(model if model in self._models else OTHER, ending).inc()
