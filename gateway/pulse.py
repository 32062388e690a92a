"""Whether a worker that has not answered yet still lives."""

import asyncio

import httpx

from gateway.errors import WorkerUnreachable

NUM_PROBES = 2  # unanswered in a row, and the worker counts as gone


class Pulse:
    """Asks workers whether they live: one question for all who wait for the same worker."""

    def __init__(self, http: httpx.AsyncClient, interval: float) -> None:
        """Ask over `http` every `interval` seconds.

        The client must be another than the one that carries the work: where all connections work, a question would
        wait for one of them to end, and a full worker would look like a dead one.
        """
        self._http = http
        self.interval = interval
        self._asked: dict[str, tuple[float, asyncio.Task[bool]]] = {}  # when, and what came of it

    async def stops(self, worker: str) -> WorkerUnreachable:
        """Return once the worker at this base URL no longer answers."""
        unanswered = 0
        while True:
            unanswered = 0 if await self._is_alive(worker) else unanswered + 1
            if unanswered == NUM_PROBES:
                return WorkerUnreachable("the worker for this does not answer; it may be restarting")
            await asyncio.sleep(self.interval)

    async def _is_alive(self, worker: str) -> bool:
        now = asyncio.get_running_loop().time()
        asked_at, answer = self._asked.get(worker, (0.0, None))
        # Half the interval: timers are not exact, and nobody may count the same silence twice.
        if answer is None or now >= asked_at + self.interval / 2:
            answer = asyncio.create_task(self._ask(worker))
            recent = {each: asked for each, asked in self._asked.items() if now < asked[0] + self.interval}
            self._asked = recent | {worker: (now, answer)}  # workers come and go
        return await asyncio.shield(answer)  # others may wait for it too

    async def _ask(self, worker: str) -> bool:
        try:
            await self._http.get(f"{worker}/livez", timeout=self.interval)
        except httpx.RequestError:
            return False
        return True
