"""Callers: a closed loop that says what a server can do, and an open one at a rate; knows no server in particular."""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx

from benchmarks.painter import Order

Draw = Callable[[Order], Awaitable[object]]
GUIDANCE = 7.5


@dataclass(frozen=True)
class Arrival:
    """An order, and the seconds after which it comes."""

    at: float
    order: Order


@dataclass(frozen=True)
class Figures:
    """What callers saw of a server: seconds, and pictures a second."""

    p50: float
    p95: float
    throughput: float
    num_failed: int = 0


def orders(number: int, steps: tuple[int, int], size: str, dice: random.Random) -> Iterator[Order]:
    """Yield orders with fixed seeds, and a number of steps that is drawn evenly from `steps`, both ends included."""
    for seed in range(number):
        yield Order(f"picture number {seed}", seed, dice.randint(*steps), GUIDANCE, size)


def poisson(wanted: Sequence[Order], rate: float, dice: random.Random) -> list[Arrival]:
    """Let orders come independently of each other, `rate` a second."""
    now = 0.0
    arrivals = []
    for order in wanted:
        now += dice.expovariate(rate)
        arrivals.append(Arrival(now, order))
    return arrivals


async def capacity(draw: Draw, wanted: Sequence[Order], num_callers: int) -> float:
    """Return pictures a second while `num_callers` ask again as soon as they are answered.

    Counted from the answer to the first `num_callers` until the last orders are given out, while everybody asks.
    """
    waiting = iter(wanted)
    answered: list[float] = []

    async def call() -> None:
        for order in waiting:
            await draw(order)
            answered.append(time.monotonic())

    await asyncio.gather(*(call() for _ in range(num_callers)))
    first, last = answered[num_callers - 1], answered[-num_callers - 1]
    return (len(answered) - 2 * num_callers) / (last - first)


async def open_loop(draw: Draw, arrivals: Sequence[Arrival]) -> Figures:
    """Send every order when it is due, whatever became of the others; latency counts from when it was due."""
    began = time.monotonic()
    latencies: list[float] = []

    async def call(arrival: Arrival) -> None:
        await asyncio.sleep(began + arrival.at - time.monotonic())
        try:
            await draw(arrival.order)
        except httpx.HTTPError:
            return
        latencies.append(time.monotonic() - began - arrival.at)

    await asyncio.gather(*map(call, arrivals))
    seconds = time.monotonic() - began - arrivals[0].at
    if len(latencies) < 2:
        raise SystemExit(f"{len(arrivals) - len(latencies)} of {len(arrivals)} orders failed")
    twentieths = statistics.quantiles(latencies, n=20, method="inclusive")
    failed = len(arrivals) - len(latencies)
    return Figures(statistics.median(latencies), twentieths[-1], len(latencies) / seconds, failed)


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the medians over rounds, and all failures."""
    return Figures(
        statistics.median(figures.p50 for figures in rounds),
        statistics.median(figures.p95 for figures in rounds),
        statistics.median(figures.throughput for figures in rounds),
        sum(figures.num_failed for figures in rounds),
    )
