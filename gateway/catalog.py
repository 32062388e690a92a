"""Which workers serve a task, and which of them do right now."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import httpx

from gateway.balance import Replica, Replicas, State
from gateway.errors import NotServed
from services.registry import Task

PROBE_SECONDS = 2.0
FAILED = b'"model_unavailable"'  # a model that the operator has to do something about
JITTER = (0.75, 1.25)  # of the interval: several gateways shall not all ask at once


@dataclass(frozen=True)
class Health:
    """Of the replicas of a task."""

    state: State
    num_ready: int
    num_replicas: int


class Catalog:
    """The workers by task."""

    def __init__(self, workers: Mapping[Task, Sequence[str]], http: httpx.AsyncClient, interval: float) -> None:
        """Take base URLs of replicas, the client to ask them with, and how often, in seconds."""
        self._workers = {task: Replicas(urls) for task, urls in workers.items()}
        self._http = http
        self._interval = interval

    def worker(self, task: Task) -> Replicas:
        """The replicas of the worker for `task`.

        Raises:
            NotServed: the operator has configured none.
        """
        if task not in self._workers:
            raise NotServed(f"no {task} worker is configured; the operator sets ATELIER_{task.upper()}_URL")
        return self._workers[task]

    async def health(self) -> dict[Task, Health]:
        """Ask all replicas at once."""
        await asyncio.gather(*(self._look_at(replica) for worker in self._workers.values() for replica in worker.all))
        return {task: Health(worker.state, worker.num_ready, len(worker.all)) for task, worker in self._workers.items()}

    async def __aenter__(self) -> Self:
        """Look at all replicas again and again from now on."""
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Look no more."""
        self._watching.cancel()
        await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        while True:
            await self.health()
            await asyncio.sleep(self._interval * random.uniform(*JITTER))

    async def _look_at(self, replica: Replica) -> None:
        try:
            answer = await self._http.get(f"{replica.url}/readyz", timeout=PROBE_SECONDS)
        except httpx.RequestError:
            replica.state = "unreachable"
            return
        if answer.is_success:
            replica.state = "ready"
        else:
            replica.state = "failed" if FAILED in answer.content else "loading"
