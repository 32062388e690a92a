"""The engine's Prometheus series, on the worker's own `/metrics`."""

from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

ITERATION_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Ending(StrEnum):
    """How a generation ended, as metrics and usage name it."""

    COMPLETE = "complete"
    LEFT = "left"
    FAILED = "failed"
    LATE = "late"  # its deadline passed


@dataclass(frozen=True)
class GenerationMetrics:
    """The series of one model."""

    endings: dict[Ending, Counter]
    iterations: Counter
    iterations_after_leave: Counter
    iteration_seconds: Histogram
    batch_size: Histogram
    queue_length: Gauge


class EngineMetrics:
    """What an engine counts, labelled by modality and model."""

    def __init__(self, modality: str, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the series: once a process, or once a registry in tests."""
        labels = ("modality", "model")
        self._modality = modality
        self._generations = Counter(
            "atelier_generations", "Generations ended, by how they ended", (*labels, "ending"), registry=registry
        )
        self._iterations = Counter(
            "atelier_iterations", "Encodings, tokens, denoising steps and decoded pieces run", labels, registry=registry
        )
        self._iterations_after_leave = Counter(
            "atelier_iterations_after_leave",
            "Iterations that ended after their caller had left; at most one a generation",
            labels,
            registry=registry,
        )
        self._iteration_seconds = Histogram(
            "atelier_iteration_seconds",
            "Duration of one iteration",
            labels,
            buckets=ITERATION_BUCKETS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "atelier_batch_size", "Requests that shared a forward", labels, buckets=BATCH_BUCKETS, registry=registry
        )
        self._queue_length = Gauge(
            "atelier_queue_length",
            "Requests that wait for the model",
            labels,
            multiprocess_mode="mostrecent",
            registry=registry,
        )

    def of(self, model: str) -> GenerationMetrics:
        """The series of one model; they show as 0 from here on."""
        labels = (self._modality, model)
        return GenerationMetrics(
            endings={ending: self._generations.labels(*labels, ending) for ending in Ending},
            iterations=self._iterations.labels(*labels),
            iterations_after_leave=self._iterations_after_leave.labels(*labels),
            iteration_seconds=self._iteration_seconds.labels(*labels),
            batch_size=self._batch_size.labels(*labels),
            queue_length=self._queue_length.labels(*labels),
        )
