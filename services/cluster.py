"""The five services as applications of Ray Serve, one for each modality: `serve deploy deploy/ray/serve.yaml`.

Serve decides how many processes there are, and where; this says what one of them is, and when it is well.
"""

import asyncio
from importlib import import_module

from prometheus_client import REGISTRY
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.util.metrics import Gauge
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from services.errors import InvalidRequest, ModelLoading, render
from services.registry import WORKERS, Task
from services.worker import MAX_CONCURRENCY, Worker

POLL_SECONDS = 0.2  # between two looks at whether the models are in memory
EXPORT_SECONDS = 2.0  # between two looks at the series; Ray passes them on every 10
OURS = "atelier_"
NO_METRICS = "the series of all processes are with Ray's exporter"
NO_ORDERS = "in a cluster the settings say which models are in memory; change them there, and deploy again"


class Scale(BaseModel):
    """The `args` of an application: whose it is, and how much of the cluster it may take.

    Args:
        task: the modality.
        min_replicas: processes that there are always; the gateway asks whether a worker lives, so one at least.
        max_replicas: that there may be.
        target_ongoing_requests: of each; with more Serve starts another, with fewer it ends one.
        num_cpus: that Ray counts for a process; it does not hold the process to them.
        num_gpus: likewise; a part of one lets several processes share it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=8, gt=0)
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def check_order(self) -> "Scale":
        """Refuse what cannot be."""
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas: must not be less than min_replicas")
        return self


def application(scale: Scale) -> serve.Application:
    """Return what Serve runs for a modality; `import_path` of the configuration names this."""
    module, _, _ = WORKERS[scale.task].target.partition(":")
    longest = import_module(module).TIMEOUT
    return Hosted.options(  # type: ignore[attr-defined] # its decorator gives it
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_ongoing_requests,
        },
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
        graceful_shutdown_timeout_s=longest,
    ).bind(scale.task)


class Front:
    """Stands before a service: takes Serve's prefix off, and says what cannot be asked of one process among several."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        app = self._app
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope["root_path"])
            scope = {**scope, "path": path, "root_path": ""}
            if path == "/metrics":
                app = PlainTextResponse(NO_METRICS, 404)
            elif scope["method"] == "POST" and path.startswith("/v1/models/"):
                app = render(InvalidRequest(NO_ORDERS))
        await app(scope, receive, send)


async def export_metrics() -> None:
    """Hand every series of this process to Ray's exporter, under its own name behind `ray_`, again and again.

    As gauges, since Ray takes no sums and no buckets from elsewhere; the numbers are those of the process.
    """
    gauges: dict[str, Gauge] = {}
    while True:
        for sample in (sample for metric in REGISTRY.collect() for sample in metric.samples):
            if sample.name.startswith(OURS) and not sample.name.endswith("_created"):
                if sample.name not in gauges:
                    gauges[sample.name] = Gauge(sample.name, tag_keys=tuple(sample.labels))
                gauges[sample.name].set(sample.value, sample.labels)
        await asyncio.sleep(EXPORT_SECONDS)


@serve.deployment(name="worker", max_ongoing_requests=MAX_CONCURRENCY)  # the engine says itself when it has enough
@serve.ingress()
class Hosted:
    """A process that serves a modality."""

    def __init__(self, task: Task) -> None:
        """Import its service; Serve starts it."""
        module, _, name = WORKERS[task].target.partition(":")
        self._module = import_module(module)
        self._service = getattr(self._module, name)
        self._has_loaded = False

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what Serve runs: a part of its interface."""
        self._exporting = asyncio.create_task(export_metrics())
        return Front(self._service.to_asgi())

    @property
    def _worker(self) -> Worker:
        worker: Worker = self._module.routes.state.worker
        return worker

    async def check_health(self) -> None:
        """Return when this can be sent requests, the first time; then say whether it still can.

        Raises:
            ServiceError: no model could be loaded, or the engine has ended; Serve puts another process in its place.
        """
        while not self._has_loaded:
            try:
                self._worker.engine.check_is_ready()
            except ModelLoading:
                await asyncio.sleep(POLL_SECONDS)
            else:
                self._has_loaded = True
        self._worker.engine.check_is_alive()
