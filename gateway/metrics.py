"""The gateway's Prometheus series: one registry an application, so that several can live in a process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """What the gateway counts; `route` is the route's template, so that callers cannot make series."""

    def __init__(self) -> None:
        """Register the series."""
        self.registry = registry = CollectorRegistry()
        labels = ("method", "route")
        self.requests = Counter("atelier_requests", "Requests ended", (*labels, "status", "ending"), registry=registry)
        self.response_seconds = Histogram(
            "atelier_response_seconds", "From arrival to the last byte", labels, buckets=SECONDS, registry=registry
        )
        self.first_byte_seconds = Histogram(
            "atelier_first_byte_seconds", "From arrival to the headers", labels, buckets=SECONDS, registry=registry
        )
        self.in_progress = Gauge("atelier_requests_in_progress", "Requests under way", registry=registry)
        self.usage_dropped = Counter(
            "atelier_usage_records_dropped", "Usage records that were never written", registry=registry
        )
