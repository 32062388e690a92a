"""Equal requests through our engine against one call of the library's pipeline for all of them, in this process."""

import asyncio
import statistics
import time
from typing import Any

from benchmarks.checkpoints import Checkpoint
from benchmarks.load import GUIDANCE
from benchmarks.painter import Order, Painter

WARM_UP_ROUNDS = 3  # in which the engine learns what sizes of batch cost


def compare(checkpoint: Checkpoint, number: int, steps: int, rounds: int) -> str:
    """Say how many pictures a second each makes; their rounds take turns, on one thread."""
    orders = [Order(f"picture {seed}", seed, steps, GUIDANCE, checkpoint.size_name) for seed in range(number)]
    painter = Painter(checkpoint.build())
    ours, call = asyncio.run(_alternate(checkpoint, orders, painter, rounds))
    engine_rate, call_rate = (number / statistics.median(seconds) for seconds in (ours, call))
    pairs = ", ".join(f"{theirs / own:.3f}" for own, theirs in zip(ours, call, strict=True))
    return (
        f"{checkpoint.name}: {number} equal requests of {steps} steps: "
        f"engine {engine_rate:.2f}/s, one pipeline call {call_rate:.2f}/s: {engine_rate / call_rate:.3f}x ({pairs})"
    )


async def _alternate(
    checkpoint: Checkpoint, orders: list[Order], painter: Painter, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the seconds that each round took: the engine's, the call's."""
    engine = _start_engine(checkpoint)
    ours, call = [], []
    try:
        for _ in range(WARM_UP_ROUNDS + rounds):
            began = time.perf_counter()
            await asyncio.gather(*(_follow(engine, order) for order in orders))
            turned = time.perf_counter()
            painter.call(orders)
            ours.append(turned - began)
            call.append(time.perf_counter() - turned)
    finally:
        engine.close()
    return ours[WARM_UP_ROUNDS:], call[WARM_UP_ROUNDS:]


def _start_engine(checkpoint: Checkpoint) -> Any:
    """Return the worker's own engine, loaded."""
    from prometheus_client import CollectorRegistry

    from services.engine.assembly import build_engine
    from services.errors import ModelLoading
    from services.image.service import make_stepper
    from services.settings import Settings

    settings = Settings(profile="tiny", data_dir=checkpoint.data_dir, device="cpu")
    engine = build_engine("image", make_stepper, settings, CollectorRegistry())
    engine.start()
    while True:
        try:
            engine.check_is_ready()
            return engine
        except ModelLoading:
            time.sleep(0.05)


async def _follow(engine: Any, order: Order) -> None:
    """Ask for a picture and follow it to its end."""
    from services.engine.generation import Terms
    from services.image.edit import Edit
    from services.image.schema import ImageJob

    job = ImageJob(
        prompt=order.prompt,
        size=order.size,
        num_inference_steps=order.num_inference_steps,
        guidance_scale=order.guidance_scale,
    )
    async for _ in engine.submit(Edit(job), None, order.seed, Terms(deadline=3600)):
        pass
