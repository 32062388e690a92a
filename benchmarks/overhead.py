"""What the scheduler itself takes: the engine with a model that does nothing, followed from an event loop."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

ACTIVE = (1, 8)
FORWARD_SECONDS = (0.0, 0.002)  # at once: the worst case; and as long as a model leaves Python's lock to others


@dataclass
class Stub:
    """A model whose forward multiplies matrices; it measures the time between two forwards, which is the engine's.

    Args:
        steps: iterations of a request.
        seconds: what a forward takes.
    """

    steps: int
    seconds: float
    max_active: int = 8
    always_shares: bool = False
    num_forwards: int = 0
    num_rows: int = 0
    outside: list[float] = field(default_factory=list)  # seconds between two forwards
    outside_cpu: list[float] = field(default_factory=list)  # of them, what the engine's thread computed
    _left: tuple[float, float] | None = None
    _factor: Any = field(default_factory=lambda: np.zeros((128, 128), np.float32))
    _product: Any = field(default_factory=lambda: np.zeros((128, 128), np.float32))

    def cost(self, request: object) -> int:
        """Nothing."""
        return 0

    def admit(self, request: object, seed: int, run: Any) -> list[Any]:
        """Count from 0."""
        return [0, run]

    def key(self, state: list[Any]) -> str:
        """All alike."""
        return "stub"

    def forward(self, states: Sequence[list[Any]]) -> Sequence[None]:
        """Note the time, and compute."""
        if self._left is not None:
            self.outside.append(time.perf_counter() - self._left[0])
            self.outside_cpu.append(time.thread_time() - self._left[1])
        self.num_forwards += 1
        self.num_rows += len(states)
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            np.matmul(self._factor, self._factor, out=self._product)  # leaves Python's lock to others, as a model does
        self._left = time.perf_counter(), time.thread_time()
        return [None] * len(states)

    def advance(self, state: list[Any], row: None) -> Any:
        """Count."""
        from services.engine.stepper import Result

        state[0] += 1
        state[1].advance(state[0], self.steps)
        return Result() if state[0] == self.steps else None

    def preview(self, state: list[Any]) -> None:
        """Show nothing."""


def report(steps: int) -> str:
    """Measure, and say it in a table."""
    lines = ["events  active  forward  batch  µs a forward: mean  median   p95  thread's CPU  a request in it: CPU"]
    for wants_progress, seconds, num_active in product((False, True), FORWARD_SECONDS, ACTIVE):
        stub = Stub(steps if not seconds else max(20, steps // 10), seconds)
        asyncio.run(run(stub, num_active, wants_progress=wants_progress))
        batch = stub.num_rows / stub.num_forwards
        spent = sorted(stub.outside)
        mean, cpu = (1e6 * sum(values) / len(values) for values in (spent, stub.outside_cpu))
        median, p95 = 1e6 * spent[len(spent) // 2], 1e6 * spent[int(len(spent) * 0.95)]
        lines.append(
            f"{'yes' if wants_progress else 'no':6}  {num_active:6}  {1000 * seconds:4.0f} ms  {batch:5.1f}"
            f"  {mean:18.0f}  {median:6.0f}  {p95:4.0f}  {cpu:12.0f}  {cpu / batch:20.0f}"
        )
    return "\n".join(lines)


async def run(stub: Stub, num_active: int, *, wants_progress: bool) -> None:
    """Let `num_active` requests share the stub, each with a follower on this loop, told of every iteration or not."""
    from prometheus_client import CollectorRegistry

    from services.engine.engine import Engine, Limits
    from services.engine.generation import Terms
    from services.engine.metrics import EngineMetrics
    from services.engine.slots import Slot

    slot = Slot(lambda: stub, is_preloaded=False)
    limits = Limits(queue_size=32, step_seconds=2.0, memory_bytes=lambda: 1e9)
    engine = Engine({"stub": slot}, EngineMetrics("stub", CollectorRegistry()), limits)

    async def follow() -> None:
        async for _ in engine.submit(None, None, 0, Terms(deadline=3600, wants_progress=wants_progress)):
            pass

    engine.start()
    try:
        await asyncio.gather(*(follow() for _ in range(num_active)))
    finally:
        engine.close()
