"""A peer: the pipeline behind BentoML's own batching. `bentoml serve benchmarks.peer_bentoml:Peer`."""

import os
from pathlib import Path
from typing import Any

import bentoml
from pydantic import BaseModel

from benchmarks.painter import CHECKPOINT_VARIABLE, Order, Painter

MAX_LATENCY_MS = 3_600_000  # nothing is shed
UNCORKED_VARIABLE = "BENCH_UNCORKED"  # set: batches do not wait for more to come


class OrderBody(BaseModel):
    """An order on the wire."""

    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    size: str


@bentoml.service(name="peer", workers=1, traffic={"timeout": 3600})
class Peer:
    """Pictures from text, a batch at a time."""

    def __init__(self) -> None:
        """Load the pipeline."""
        if UNCORKED_VARIABLE in os.environ:
            uncork()
        self._painter = Painter(Path(os.environ[CHECKPOINT_VARIABLE]))

    @bentoml.api(route="/draw", batchable=True, max_batch_size=8, max_latency_ms=MAX_LATENCY_MS)  # type: ignore[untyped-decorator]
    def draw(self, bodies: list[OrderBody], /) -> list[dict[str, str]]:
        """Draw them."""
        pictures = self._painter.paint([Order(**body.model_dump()) for body in bodies])
        return [{"png": picture} for picture in pictures]


def uncork() -> None:
    """Let BentoML's dispatcher send what waits as soon as the model is free: it delays by what it learned otherwise.

    Source: bentoml 1.4.39, `_internal/marshal/dispatcher.py`; after bursts it holds lone requests back.
    """
    from bentoml._internal.marshal import dispatcher

    patched: Any = dispatcher
    refresh = patched.Optimizer.trigger_refresh

    def refresh_without_wait(self: Any) -> None:
        refresh(self)
        self.wait = 0.0

    async def train_nothing(self: Any, *arguments: Any, **options: Any) -> None:
        return None

    patched.Optimizer.trigger_refresh = refresh_without_wait
    patched.CorkDispatcher.train_optimizer = train_nothing
