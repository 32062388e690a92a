"""Gives jobs to this gateway's places, says that it lives, and takes over from gateways that do not."""

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Self

from gateway.artefacts.store import Artefacts
from gateway.errors import GatewayError
from gateway.jobs.books import Books
from gateway.jobs.live import Live
from gateway.jobs.runner import Runner
from gateway.jobs.schema import Job
from gateway.jobs.store import AWAY, Candidate, Store
from gateway.jobs.webhooks import Webhooks, event_of
from gateway.waiting import at_most
from services.registry import Task

logger = logging.getLogger("atelier.jobs")

LOOK_SECONDS = 0.5  # between two looks for what other gateways have accepted or cancelled
BEAT_SECONDS = 2.0
DEAD_SECONDS = 8.0  # without a beat, and a gateway's jobs go on elsewhere
SWEEP_SECONDS = 15.0
HOOK_SECONDS = 1.0
HOOKS_AT_ONCE, HOOKS_OF_ONE = 64, 8  # deliveries: of all, and of one caller (twice that for a moment)
HOOK_LEASE = timedelta(seconds=60)  # for a delivery; who is killed in one leaves it to others after that
KINDS = {"/v1/videos": "video", "/v1/3d/generations": "mesh"}  # what events are called by; others are jobs


class Foreman:
    """One for each gateway."""

    def __init__(
        self,
        executor: str,
        store: Store,
        books: Books,
        runner: Runner,
        artefacts: Artefacts,
        places: Mapping[Task, int],
        webhooks: Webhooks,
    ) -> None:
        """Have so many `places` for jobs of each task, and hold them in the name of `executor`."""
        self.executor = executor
        self.live: dict[str, Live] = {}
        self._store = store
        self._books = books
        self._runner = runner
        self._artefacts = artefacts
        self._places = places
        self._webhooks = webhooks
        self._running: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._last: dict[tuple[str, str], int] = {}  # when a caller had a turn, counted
        self._num_claims = 0
        self._wake = asyncio.Event()
        self._strays: dict[str, int] = {}
        self._seen: dict[str, tuple[int, float]] = {}  # of other gateways: beats, and when they were new

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[Self]:
        """Work meanwhile; at the end others may have what is under way."""
        loops = [self._claiming, self._looking, self._beating, self._sweeping, self._delivering]
        tasks = [asyncio.create_task(kept_up(loop), name="jobs") for loop in loops]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._drop(list(self._running))
            try:
                await self._store.release(self.executor)
            except AWAY as error:
                logger.warning("jobs: others notice only by our silence that we are gone: %s", type(error).__name__)

    def wake(self) -> None:
        """Look for jobs at once."""
        self._wake.set()

    async def drop(self, job_id: str) -> None:
        """Close the call of a job that has been cancelled, if it is ours."""
        await self._drop([job_id])

    async def _drop(self, job_ids: list[str]) -> None:
        tasks = [self._running[job_id][1] for job_id in job_ids if job_id in self._running]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- loops ---

    async def _claiming(self) -> None:
        while True:
            self._wake.clear()
            num_claimed = 0
            try:
                num_claimed = await self._claim()
            except AWAY as error:
                logger.warning("jobs cannot be looked for: %s", type(error).__name__)
            if not num_claimed:
                await at_most(LOOK_SECONDS, self._wake)

    async def _claim(self) -> int:
        """Give each free place to the caller who has the fewest jobs under way, and among those has waited longest."""
        taken = Counter(job.task for job, _ in self._running.values())
        free = {task: places - taken[task] for task, places in self._places.items()}
        if not any(number > 0 for number in free.values()):
            return 0
        now = datetime.now(UTC)
        found, running = await self._store.waiting([task for task in free if free[task] > 0], max(free.values()), now)
        chosen = in_turn(found, running, free, self._last)
        if not chosen:
            return 0
        jobs = {job.seq: job for job in await self._store.claim([each.seq for each in chosen], self.executor, now)}
        for job in (jobs[each.seq] for each in chosen if each.seq in jobs):
            self._num_claims += 1
            self._last[job.task, job.turn] = self._num_claims
            await self._drop([job.id])  # an attempt of ours that was given to others, and came back
            live = self.live[job.id] = Live()
            self._running[job.id] = job, asyncio.create_task(self._run(job, live), name=f"job {job.id}")
        if len(self._last) > 10_000:
            self._last.clear()
        return len(jobs)

    async def _run(self, job: Job, live: Live) -> None:
        try:
            await self._runner.run(job, live)
        finally:
            self._running.pop(job.id, None)
            self.live.pop(job.id, None)
            live.is_over = True
            live.tell()
            self._wake.set()

    async def _looking(self) -> None:
        """Close calls of jobs that are not ours any more: cancelled elsewhere, or given to others."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            ours = {job_id: job.attempt for job_id, (job, _) in self._running.items()}
            if not ours:
                continue
            try:
                held = await self._store.held(self.executor)
            except AWAY as error:
                logger.warning("jobs cannot be looked at: %s", type(error).__name__)
                continue
            lost = [job_id for job_id, attempt in ours.items() if held.get(job_id) != attempt]
            await self._drop([job_id for job_id in lost if job_id in self._running and self._is(job_id, ours)])

    def _is(self, job_id: str, ours: Mapping[str, int]) -> bool:
        return self._running[job_id][0].attempt == ours[job_id]

    async def _beating(self) -> None:
        has_begun = False
        while True:
            try:
                live = (
                    {job_id: live.shown() for job_id, live in self.live.items()} if self._seen else {}
                )  # or nobody asks
                if not await self._store.beat(self.executor, live) and has_begun:
                    logger.warning("jobs: others took us for dead; what we work on is theirs")
                    await self._drop(list(self._running))
                has_begun = True
                await self._let_go_of_strays()
                await self._bury()
            except AWAY as error:
                logger.warning("jobs: we cannot say that we live: %s", type(error).__name__)
            await asyncio.sleep(BEAT_SECONDS)

    async def _let_go_of_strays(self) -> None:
        """Give back what is ours by the table and not in fact, as we were taken for dead, or a claim was not answered.

        What is found twice is: a claim may be on its way here the first time.
        """
        held = await self._store.held(self.executor)
        strays = {job_id: attempt for job_id, attempt in held.items() if job_id not in self._running}
        again = {job_id: attempt for job_id, attempt in strays.items() if self._strays.get(job_id) == attempt}
        self._strays = strays
        if again:
            logger.warning("jobs: %d are ours and nobody works on them; they go on", len(again))
            await self._store.let_go(self.executor, again)
            self._wake.set()

    async def _bury(self) -> None:
        """Take over from gateways whose numbers have not grown for too long, by our own clock."""
        now = time.monotonic()
        found = await self._store.gateways()
        self._seen = {
            executor: self._seen[executor] if self._seen.get(executor, (-1, 0))[0] == beats else (beats, now)
            for executor, beats in found.items()
            if executor != self.executor
        }
        for executor, (beats, since) in list(self._seen.items()):
            if now - since >= DEAD_SECONDS:
                num_jobs = await self._store.bury(executor, beats)
                del self._seen[executor]  # it may come back
                if num_jobs is not None:
                    logger.warning("jobs: gateway %s is gone; its %d jobs go on", executor, num_jobs)
                    self._wake.set()

    async def _sweeping(self) -> None:
        while True:
            try:
                await self._books.write_lost_rows()  # first, as it needs no bucket
                while expired := await self._store.expired(datetime.now(UTC)):
                    for job_id in expired:
                        await self.remove(job_id)
                for job_id in await self._store.abandoned():
                    await self._artefacts.delete(job_id)
                    await self._store.forget_upload(job_id)
                await asyncio.to_thread(self._artefacts.sweep)
            except (*AWAY, GatewayError) as error:
                logger.warning("jobs: what is old has to wait: %s", type(error).__name__)
            await asyncio.sleep(SWEEP_SECONDS)

    async def remove(self, job_id: str) -> None:
        """Delete the files of a hidden job, then its row: who is killed in between leaves a row to begin with again."""
        await self._artefacts.delete(job_id)
        await self._store.forget(job_id)

    async def _delivering(self) -> None:
        """Deliver as many at once as there is room for; nobody waits for another caller's receivers."""
        under_way: Counter[str] = Counter()

        async def deliver(job: Job) -> None:
            try:
                await self._tell(job)
            except AWAY as error:
                logger.warning("job %s: its webhook has to wait: %s", job.id, type(error).__name__)
            finally:
                under_way[job.turn] -= 1

        async with asyncio.TaskGroup() as deliveries:
            while True:
                busy = [turn for turn, number in under_way.items() if number >= HOOKS_OF_ONE]
                number = HOOKS_AT_ONCE - under_way.total()
                try:
                    for job in await self._store.due(
                        datetime.now(UTC), HOOK_LEASE, number=number, of_one=HOOKS_OF_ONE, busy=busy
                    ):
                        under_way[job.turn] += 1
                        deliveries.create_task(deliver(job))
                except AWAY as error:
                    logger.warning("jobs: webhooks have to wait: %s", type(error).__name__)
                await asyncio.sleep(HOOK_SECONDS)

    async def _tell(self, job: Job) -> None:
        assert job.hook_url is not None and job.completed_at is not None  # noqa: S101, PT018 - as it is due
        event = event_of(f"{KINDS.get(job.route, 'job')}.{job.state}", job.id, int(job.completed_at.timestamp()))
        outcome = await self._webhooks.attempt(job.hook_url, job.caller, event, job.hook_tries)
        if outcome.again_in is None and not outcome.is_delivered:
            logger.warning("job %s: its webhook is given up: %s", job.id, outcome.said)
        again_at = None if outcome.again_in is None else datetime.now(UTC) + timedelta(seconds=outcome.again_in)
        await self._store.told(job, again_at)


async def kept_up(loop: Callable[[], Awaitable[None]]) -> None:
    """Begin a loop again that breaks off by a mistake of ours: else jobs would lie still, and nobody would know."""
    while True:
        try:
            await loop()
        except Exception:
            logger.exception("jobs: a loop broke off, and begins again")
        await asyncio.sleep(LOOK_SECONDS)


def in_turn(
    found: Sequence[Candidate],
    running: Mapping[tuple[str, str], int],
    free: Mapping[Task, int],
    last: Mapping[tuple[str, str], int],
) -> list[Candidate]:
    """Fill the free places: each time with the oldest job of whoever has the fewest, and then has waited longest.

    Args:
        found: who waits.
        running: how many of each caller's are under way, by task and caller.
        free: places, by task.
        last: when a caller had a turn, counted; by task and caller.
    """
    lines: dict[tuple[str, str], deque[Candidate]] = defaultdict(deque)
    for each in sorted(found, key=lambda each: each.seq):
        lines[each.task, each.turn].append(each)
    under_way, latest = Counter(running), dict(last)
    turns = count(max(latest.values(), default=0) + 1)
    of_caller: Counter[str] = Counter()
    for (_, turn), number in running.items():
        of_caller[turn] += number
    chosen: list[Candidate] = []
    for task, num_places in free.items():
        for _ in range(num_places):
            heads = [
                line[0]
                for (its, turn), line in lines.items()
                if its == task and line and (line[0].places is None or of_caller[turn] < line[0].places)
            ]
            if not heads:
                break
            best = min(heads, key=lambda each: (under_way[key_of(each)], latest.get(key_of(each), 0), each.seq))
            chosen.append(lines[key_of(best)].popleft())
            under_way[key_of(best)] += 1
            of_caller[best.turn] += 1
            latest[key_of(best)] = next(turns)
    return chosen


def key_of(job: Candidate) -> tuple[str, str]:
    """Who takes turns, and for what."""
    return job.task, job.turn
