"""The gateway's Prometheus series: one registry an application, so that several can live in a process."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from services.registry import WORKERS, Task, load_models

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

    def __init__(self) -> None:
        """Register the series."""
        self.registry = registry = CollectorRegistry()
        self._models = frozenset(model.id for model in load_models())
        labels = ("method", "route")
        self.requests = Counter("atelier_requests", "Requests ended", (*labels, "status", "ending"), registry=registry)
        self.response_seconds = Histogram(
            "atelier_response_seconds", "From arrival to the last byte", labels, buckets=SECONDS, registry=registry
        )
        self.first_byte_seconds = Histogram(
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

    @contextmanager
    def upstream(self, path: str) -> Iterator[None]:
        """Count and time what a worker's route is asked for, until the request has ended."""
        in_progress, seconds = self._upstream[TASKS.get(path, OTHER)]
        with in_progress.track_inprogress(), seconds.time():
            yield

    def count_answer(self, model: str, ending: str) -> None:
        """Count an answer that a model gave."""
        self._answers.labels(model if model in self._models else OTHER, ending).inc()
