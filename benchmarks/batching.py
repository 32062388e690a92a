"""Batching by the iteration against batching by the request: our image worker, BentoML's batching and LitServe's.

`python -m benchmarks.batching --model middle --peer litserve`: both serve the same random checkpoint on one thread, one
at a time, under the same Poisson arrivals. `--cost`, `--equal` and `--overhead` measure without a server.
"""

import argparse
import asyncio
import functools
import random
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Generic, TypeVar

from benchmarks import cost, equality, overhead
from benchmarks.checkpoints import CHECKPOINTS, Checkpoint
from benchmarks.load import Arrival, Figures, capacity, medians, open_loop, orders, poisson
from benchmarks.painter import Order
from benchmarks.servers import Kind, Server, bentoml_peer, litserve_peer, ours, serving

T = TypeVar("T")
TOLERANCE = 2  # of 255
PEERS = ("bentoml", "bentoml-uncorked", "litserve")
COLUMNS = """\
| load | arrivals/s | p50, s | p95, s | pictures/s | p95, each round | failed |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        loads: parts of the peer's capacity.
        steps: the fewest and the most that a request asks for.
        num_callers: who measure the capacity.
        warm_up: requests to each server that has just been started.
    """

    loads: tuple[float, ...]
    steps: tuple[int, int]
    rounds: int
    num_requests: int
    num_capacity_requests: int
    num_callers: int
    warm_up: int
    seed: int

    def orders(self, number: int, checkpoint: Checkpoint, purpose: str) -> list[Order]:
        """Return the same orders for the same purpose."""
        return list(orders(number, self.steps, checkpoint.size_name, random.Random(f"{self.seed} {purpose}")))

    def arrivals(self, checkpoint: Checkpoint, load: float, rate: float, index: int) -> list[Arrival]:
        """Return what comes in a round: the same for both servers."""
        purpose = f"{load} {index}"
        wanted = self.orders(self.num_requests, checkpoint, purpose)
        return poisson(wanted, rate * load, random.Random(f"{self.seed} arrivals {purpose}"))


def main() -> None:
    """Measure what was asked for."""
    options = parser().parse_args()
    checkpoints = [CHECKPOINTS[name] for name in options.model]
    if options.overhead:
        say(overhead.report(options.iterations))
    for checkpoint in checkpoints if not options.overhead else ():
        checkpoint.build()
        say(f"\n{checkpoint.name}, {checkpoint.size} px: {cost.describe(cost.measure_apart(checkpoint))}")
        if options.equal:
            say(equality.compare(checkpoint, 8, options.equal_steps, options.rounds))
        elif not options.cost:
            for peer in options.peer:
                say(compare(kind_of(peer, options.batch_timeout), checkpoint, plan_of(options)))


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    add = functools.partial(reader.add_argument, help="(default: %(default)s)")
    add("--model", nargs="+", choices=CHECKPOINTS, default=["tiny", "middle", "dense"])
    add("--peer", nargs="+", choices=PEERS, default=["bentoml", "litserve"])
    add("--loads", nargs="+", type=float, default=[0.5, 0.8, 0.9])
    add("--steps", nargs=2, type=int, default=[6, 20])
    add("--rounds", type=int, default=3)
    add("--requests", type=int, default=120)
    add("--capacity-requests", type=int, default=128)
    add("--callers", type=int, default=16)
    add("--warm-up", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--batch-timeout", type=float, default=0.01, help="LitServe's, in seconds (default: %(default)s)")
    add("--equal-steps", type=int, default=12)
    add("--iterations", type=int, default=2000, help="of each request of --overhead (default: %(default)s)")
    only = reader.add_mutually_exclusive_group()
    only.add_argument("--cost", action="store_true", help="only what a shared forward costs")
    only.add_argument("--equal", action="store_true", help="only 8 equal requests against one pipeline call")
    only.add_argument("--overhead", action="store_true", help="only the scheduler, without a model")
    return reader


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what the command line says about how much is measured."""
    low, high = options.steps
    if options.capacity_requests <= 2 * options.callers:
        raise SystemExit("--capacity-requests must be more than twice --callers")
    return Plan(
        loads=tuple(options.loads),
        steps=(low, high),
        rounds=options.rounds,
        num_requests=options.requests,
        num_capacity_requests=options.capacity_requests,
        num_callers=options.callers,
        warm_up=options.warm_up,
        seed=options.seed,
    )


def kind_of(peer: str, batch_timeout: float) -> Kind:
    """Return the peer of that name."""
    makers: Mapping[str, Callable[[], Kind]] = {
        "bentoml": lambda: bentoml_peer(is_uncorked=False),
        "bentoml-uncorked": lambda: bentoml_peer(is_uncorked=True),
        "litserve": lambda: litserve_peer(batch_timeout),
    }
    return makers[peer]()


def compare(peer: Kind, checkpoint: Checkpoint, plan: Plan) -> str:
    """Run both servers in turns, and say how they did."""
    theirs, own = (measure_capacity(kind, checkpoint, plan) for kind in (peer, ours()))
    rate = theirs.found
    check_equal(own.picture, theirs.picture)
    found: dict[tuple[str, float], list[Figures]] = {}
    for index in range(plan.rounds):
        for kind in (ours(), peer):
            seen = measure_round(kind, checkpoint, plan, rate, index)
            check_equal(seen.picture, theirs.picture)
            for load, figures in seen.found.items():
                found.setdefault((kind.name, load), []).append(figures)
    lines = [
        f"{checkpoint.name}, ours / {peer.name}: {plan.num_callers} callers get {own.found:.2f} / {rate:.2f} "
        f"pictures a second ({own.found / rate:.2f}x)",
        COLUMNS,
    ]
    lines += [row(load, rate * load, found["ours", load], found[peer.name, load]) for load in plan.loads]
    return "\n".join(lines)


def row(load: float, rate: float, own: Sequence[Figures], theirs: Sequence[Figures]) -> str:
    """Return a line of the table: medians over the rounds, and the p95 ratio of each."""
    a, b = medians(own), medians(theirs)
    spread = " ".join(f"{mine.p95 / other.p95:.2f}" for mine, other in zip(own, theirs, strict=True))
    pairs = ((a.p50, b.p50), (a.p95, b.p95), (a.throughput, b.throughput))
    cells = (f"{mine:.3f} / {other:.3f} {mine / other:.2f}x" for mine, other in pairs)
    return "| " + " | ".join((f"{load:.0%}", f"{rate:.2f}", *cells, spread, f"{a.num_failed} / {b.num_failed}")) + " |"


def describe(figures: Figures) -> str:
    """Say it in a line."""
    failed = f", {figures.num_failed} failed" if figures.num_failed else ""
    return f"p50 {figures.p50:.3f} s, p95 {figures.p95:.3f} s, {figures.throughput:.2f}/s{failed}"


@dataclass(frozen=True)
class Seen(Generic[T]):
    """What was found of a server, and the first picture it made, as PNG."""

    found: T
    picture: bytes


def measure_capacity(kind: Kind, checkpoint: Checkpoint, plan: Plan) -> Seen[float]:
    """Ask for as much as the server can do: pictures a second."""
    wanted = plan.orders(plan.num_capacity_requests, checkpoint, "capacity")
    seen = measure(kind, checkpoint, plan, lambda server: capacity(server.draw, wanted, plan.num_callers))
    say(f"  {kind.name}: {plan.num_callers} callers get {seen.found:.2f}/s")
    return seen


def measure_round(
    kind: Kind, checkpoint: Checkpoint, plan: Plan, rate: float, index: int
) -> Seen[dict[float, Figures]]:
    """Send the server every load, parts of `rate`."""
    arrivals = {load: plan.arrivals(checkpoint, load, rate, index) for load in plan.loads}

    async def send(server: Server) -> dict[float, Figures]:
        return {load: await open_loop(server.draw, due) for load, due in arrivals.items()}

    seen = measure(kind, checkpoint, plan, send)
    for load, figures in seen.found.items():
        say(f"  round {index + 1}, {load:.0%}, {kind.name}: {describe(figures)}")
    return seen


def measure(kind: Kind, checkpoint: Checkpoint, plan: Plan, send: Callable[[Server], Awaitable[T]]) -> Seen[T]:
    """Start a server, warm it up, send it what is to be measured, and end it."""

    async def load(server: Server) -> Seen[T]:
        async with server.client:
            picture = await warm_up(server, checkpoint, plan)
            return Seen(await send(server), picture)

    with serving(kind, checkpoint) as server:
        return asyncio.run(load(server))


async def warm_up(server: Server, checkpoint: Checkpoint, plan: Plan) -> bytes:
    """Ask for a picture alone, which is returned, and for some together: all servers learn what batches cost."""
    wanted = plan.orders(plan.warm_up + 1, checkpoint, "warm-up")
    picture = await server.draw(wanted[0])
    waiting = iter(wanted[1:])

    async def call() -> None:
        for order in waiting:
            await server.draw(order)

    await asyncio.gather(*(call() for _ in range(plan.num_callers)))
    return picture


def check_equal(one: bytes, other: bytes) -> None:
    """Make sure that both servers do the same work: the worker builds a checkpoint anew that it finds stale.

    Raises:
        SystemExit: the pictures differ.
    """
    import numpy as np
    from PIL import Image

    first, second = (np.asarray(Image.open(BytesIO(file)), dtype=np.int16) for file in (one, other))
    if first.shape != second.shape or np.abs(first - second).max() > TOLERANCE:
        raise SystemExit("the servers make different pictures of the same order; do they have the same checkpoint?")


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
