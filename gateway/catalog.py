"""Which worker serves a task, and whether it does right now."""

import asyncio
from collections.abc import Mapping
from typing import Literal

import httpx

from gateway.errors import NotServed
from services.registry import Task

State = Literal["ready", "loading", "failed", "unreachable"]
PROBE_SECONDS = 2.0
FAILED = b'"model_unavailable"'  # a model that the operator has to do something about


class Catalog:
    """The workers by task."""

    def __init__(self, workers: Mapping[Task, str], http: httpx.AsyncClient) -> None:
        """Take base URLs, and the client to ask the workers with."""
        self._workers = workers
        self._http = http

    def worker(self, task: Task) -> str:
        """The base URL of the worker for `task`.

        Raises:
            NotServed: the operator has configured none.
        """
        if task not in self._workers:
            raise NotServed(f"no {task} worker is configured; the operator sets ATELIER_{task.upper()}_URL")
        return self._workers[task]

    async def states(self) -> dict[Task, State]:
        """Ask all workers at once."""
        states = await asyncio.gather(*(self._state(url) for url in self._workers.values()))
        return dict(zip(self._workers, states, strict=True))

    async def _state(self, url: str) -> State:
        try:
            answer = await self._http.get(f"{url}/readyz", timeout=PROBE_SECONDS)
        except httpx.RequestError:
            return "unreachable"
        if answer.is_success:
            return "ready"
        return "failed" if FAILED in answer.content else "loading"
