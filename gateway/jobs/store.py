"""Every move of a job, one transaction each: conditional updates, so that of several who try only one succeeds."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, case, delete, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.jobs.schema import (
    ENDED,
    NOBODY,
    OPEN,
    Change,
    EventRow,
    GatewayRow,
    Job,
    JobRow,
    JobState,
    Outcome,
)
from gateway.usage.receipts import write
from gateway.usage.rollup import count_records
from gateway.usage.schema import ReceiptRow, Record, Usage
from services.schema import Receipt

COLUMNS = tuple(JobRow.__table__.columns)
BATCH_ROWS = 100


@dataclass(frozen=True)
class Candidate:
    """The oldest job of a caller that waits for a task."""

    task: str
    turn: str
    seq: int
    places: int | None


@dataclass(frozen=True)
class Query:
    """Which jobs are listed, newest first unless `ascending`."""

    caller: str | None
    state: str | None = None
    kind: str | None = None
    route: str | None = None
    after: str | None = None
    ascending: bool = False


class Store:
    """The table of jobs, shared by all gateways."""

    def __init__(self, database: AsyncEngine, retention: timedelta | None) -> None:
        """Keep jobs for `retention` after their end; None: for ever."""
        self._database = database
        self._retention = retention

    # --- callers ---

    async def add(self, values: Mapping[str, Any]) -> Job:
        """Accept a job.

        Raises:
            IntegrityError: its caller has used the idempotency key already.
        """
        async with self._database.begin() as connection:
            row = (await connection.execute(insert(JobRow).values(values).returning(*COLUMNS))).one()
            await _tell(connection, row)
            return Job.of(row)

    async def get(self, job_id: str, caller: str | None) -> Job | None:
        """Look a job up, if it is the caller's; None as a caller sees all."""
        return await self._one(JobRow.id == job_id, *_of(caller))

    async def repeated(self, idempotency: str) -> Job | None:
        """The job that a key of a caller's stands for."""
        return await self._one(JobRow.idempotency == idempotency)

    async def page(self, query: Query, num_rows: int) -> list[Job]:
        """List jobs; after one that there is not, nothing."""
        wanted = [*_of(query.caller), JobRow.is_deleted.is_(False)]
        for column, value in ((JobRow.state, query.state), (JobRow.kind, query.kind), (JobRow.route, query.route)):
            if value is not None:
                wanted.append(column == value)
        if query.after is not None:
            other = select(JobRow.seq).where(JobRow.id == query.after, *_of(query.caller)).scalar_subquery()
            wanted.append(JobRow.seq > other if query.ascending else JobRow.seq < other)
        order = JobRow.seq if query.ascending else JobRow.seq.desc()
        async with self._database.connect() as connection:
            rows = await connection.execute(select(*COLUMNS).where(*wanted).order_by(order).limit(num_rows))
            return [Job.of(row) for row in rows]

    async def num_ahead(self, job: Job) -> int:
        """How many jobs wait for the same task, and came before."""
        ahead = select(func.count()).where(*_waits(), JobRow.task == job.task, JobRow.seq < job.seq)
        async with self._database.connect() as connection:
            return int(await connection.scalar(ahead) or 0)

    async def changes(self, job: Job, after: int) -> list[Change]:
        """Changes of a job behind the one of that number, in order."""
        wanted = select(EventRow.id, EventRow.at, EventRow.state, EventRow.step).where(
            EventRow.job_seq == job.seq, EventRow.id > after
        )
        async with self._database.connect() as connection:
            return [
                Change(row.id, row.at, cast(JobState, row.state), row.step)
                for row in await connection.execute(wanted.order_by(EventRow.id))
            ]

    async def cancel(self, job_id: str, caller: str | None) -> Job | None:
        """End a job that has not ended; None: it had."""
        error = {"code": "cancelled", "message": "the job was cancelled"}
        return await self._end("cancelled", {"error": error}, JobRow.id == job_id, *_of(caller))

    async def requeue(self, job: Job, request_id: str, now: datetime) -> Job | None:
        """Begin a job again that has failed or was cancelled, in another request's name; None: it is under way."""
        fresh: dict[str, Any] = {
            "state": "queued",
            "request_id": request_id,
            "step": 0,
            "task": job.steps[0].task,
            "executor": NOBODY,
            "breaks": 0,
            "created_at": now,
            "not_before": now,
            **dict.fromkeys(("started_at", "completed_at", "expires_at", "seed", "hook_at")),
            **{"error": None, "outputs": [], "usage": {}, "queue_seconds": 0, "run_seconds": 0, "hook_tries": 0},
        }
        ended = JobRow.id == job.id, JobRow.state.in_(("failed", "cancelled")), JobRow.is_deleted.is_(False)
        return await self._move(fresh, *ended)

    async def mark_deleted(self, job_id: str, caller: str | None) -> Job | None:
        """Hide a job that has ended from everybody; its files and its row are to follow."""
        marked = update(JobRow).where(JobRow.id == job_id, *_of(caller), JobRow.state.in_(ENDED))
        values = {"is_deleted": True, "expires_at": datetime.now(UTC)}
        async with self._database.begin() as connection:
            row = (await connection.execute(marked.values(values).returning(*COLUMNS))).one_or_none()
            return None if row is None else Job.of(row)

    async def forget(self, job_id: str) -> None:
        """Delete the row of a job whose files are gone."""
        own = select(JobRow.seq).where(JobRow.id == job_id).scalar_subquery()
        async with self._database.begin() as connection:
            await connection.execute(delete(EventRow).where(EventRow.job_seq == own))
            await connection.execute(delete(JobRow).where(JobRow.id == job_id))

    async def expired(self, now: datetime) -> list[str]:
        """Hide jobs whose time is over, and name them."""
        late = JobRow.expires_at < now, JobRow.state.in_(ENDED)
        among = select(JobRow.seq).where(*late).limit(BATCH_ROWS).scalar_subquery()
        async with self._database.begin() as connection:
            hidden = update(JobRow).where(JobRow.seq.in_(among), *late).values(is_deleted=True).returning(JobRow.id)
            return list(await connection.scalars(hidden))

    # --- those who work ---

    async def waiting(self, now: datetime) -> tuple[list[Candidate], Counter[tuple[str, str]]]:
        """The oldest job of each caller for each task, and how many of each run anywhere (by task and caller)."""
        oldest = (
            select(JobRow.task, JobRow.turn, func.min(JobRow.seq), func.max(JobRow.places))
            .where(*_waits(), JobRow.not_before <= now)
            .group_by(JobRow.task, JobRow.turn)
        )
        running = (
            select(JobRow.task, JobRow.turn, func.count())
            .where(JobRow.executor != NOBODY, JobRow.state == "in_progress")
            .group_by(JobRow.task, JobRow.turn)
        )
        async with self._database.connect() as connection:
            found = [Candidate(*row) for row in await connection.execute(oldest)]
            if not found:
                return [], Counter()
            counted = await connection.execute(running)
            return found, Counter({(task, turn): number for task, turn, number in counted})

    async def claim(self, seq: int, executor: str, now: datetime) -> Job | None:
        """Take a job; None: somebody else was quicker."""
        values = {
            "executor": executor,
            "attempt": JobRow.attempt + 1,
            "state": "in_progress",
            "started_at": func.coalesce(JobRow.started_at, now, type_=JobRow.started_at.type),
        }
        async with self._database.begin() as connection:
            for state in OPEN:  # one of the two: only the first changes what callers see
                taken = update(JobRow).where(JobRow.seq == seq, JobRow.executor == NOBODY, JobRow.state == state)
                row = (await connection.execute(taken.values(values).returning(*COLUMNS))).one_or_none()
                if row is not None:
                    if state == "queued":
                        await _tell(connection, row)
                    return Job.of(row)
        return None

    async def put_back(self, job: Job, not_before: datetime, *, breaks: int) -> bool:
        """Let a job wait until somebody takes it again; whether it was still ours."""
        values = {"executor": NOBODY, "not_before": not_before, "breaks": breaks}
        async with self._database.begin() as connection:
            return bool((await connection.execute(update(JobRow).where(*_held(job)).values(values))).rowcount)

    async def step_done(self, job: Job, outcome: Outcome, receipt: Receipt) -> Job | None:
        """Note what a step came to: the job waits for the next one, or has ended; None: it was not ours any more.

        The receipt is written in the same transaction: what is done is paid, once.
        """
        usage = Counter(job.usage)
        usage.update(outcome.usage)
        values = {
            "outputs": [each.row() for each in (*job.outputs, *outcome.outputs)],
            "usage": dict(usage),
            "seed": outcome.seed if outcome.seed is not None else job.seed,
            "model": outcome.model or job.model,
            "queue_seconds": job.queue_seconds + outcome.queue_seconds,
            "run_seconds": job.run_seconds + outcome.run_seconds,
        }
        following = job.step + 1
        if following == len(job.steps):
            return await self._end("completed", values, *_held(job), receipt=receipt)
        values |= {"step": following, "task": job.steps[following].task, "executor": NOBODY, "breaks": 0}
        return await self._move(values, *_held(job), receipt=receipt)

    async def fail(self, job: Job, error: Mapping[str, Any]) -> Job | None:
        """End a job with an error; None: it was not ours any more."""
        return await self._end("failed", {"error": dict(error)}, *_held(job))

    async def exists(self, job_id: str) -> bool:
        """Whether there is such a job, deleted or not."""
        async with self._database.connect() as connection:
            return await connection.scalar(select(JobRow.seq).where(JobRow.id == job_id)) is not None

    async def held(self, executor: str) -> dict[str, int]:
        """The jobs that an executor holds, and at which attempt."""
        own = select(JobRow.id, JobRow.attempt).where(JobRow.executor == executor, JobRow.state == "in_progress")
        async with self._database.connect() as connection:
            return {row.id: row.attempt for row in await connection.execute(own)}

    async def release(self, executor: str) -> int:
        """Let others have all that an executor holds, and forget it; how many jobs those were."""
        own = update(JobRow).where(JobRow.executor == executor, JobRow.state == "in_progress")
        async with self._database.begin() as connection:
            await connection.execute(delete(GatewayRow).where(GatewayRow.id == executor))
            return (await connection.execute(own.values(executor=NOBODY))).rowcount

    # --- gateways ---

    async def beat(self, executor: str, live: Mapping[str, Any]) -> bool:
        """Say that an executor lives, and what it works on; whether it was known."""
        values = {"beats": GatewayRow.beats + 1, "live": dict(live)}
        own = update(GatewayRow).where(GatewayRow.id == executor)
        async with self._database.begin() as connection:
            if (await connection.execute(own.values(values))).rowcount:
                return True
            await connection.execute(insert(GatewayRow).values(id=executor, beats=1, live=dict(live)))
            return False

    async def gateways(self) -> dict[str, int]:
        """All executors and their numbers."""
        async with self._database.connect() as connection:
            rows = await connection.execute(select(GatewayRow.id, GatewayRow.beats))
            return {row.id: row.beats for row in rows}

    async def bury(self, executor: str, beats: int) -> int | None:
        """Let others have what a dead executor held; None: it lives, or somebody else has buried it."""
        dead = delete(GatewayRow).where(GatewayRow.id == executor, GatewayRow.beats == beats)
        own = update(JobRow).where(JobRow.executor == executor, JobRow.state == "in_progress")
        async with self._database.begin() as connection:
            if not (await connection.execute(dead)).rowcount:
                return None
            return (await connection.execute(own.values(executor=NOBODY))).rowcount

    async def live_at(self, executor: str, job_id: str) -> Any:
        """What another gateway has said of a job that it works on."""
        async with self._database.connect() as connection:
            live = await connection.scalar(select(GatewayRow.live).where(GatewayRow.id == executor))
        return (live or {}).get(job_id)

    # --- usage ---

    async def settled_by_receipt(self, job_ids: Collection[str]) -> dict[tuple[str, int], tuple[str, int]]:
        """Of these jobs the cancelled ones: id and attempt, and the request and step that pay for it."""
        wanted = select(JobRow.id, JobRow.attempt, JobRow.request_id, JobRow.step).where(
            JobRow.id.in_(job_ids), JobRow.state == "cancelled"
        )
        async with self._database.connect() as connection:
            rows = await connection.execute(wanted)
            return {(job_id, attempt): (request_id, step) for job_id, attempt, request_id, step in rows}

    async def write_lost_rows(self, before: datetime) -> None:
        """Give receipts of jobs the usage rows that they lack: a gateway that was killed had not written them yet."""
        orphan = ReceiptRow.usage_id.is_(None), ReceiptRow.received_at < before
        wanted = select(*COLUMNS).join(ReceiptRow, ReceiptRow.request_id == JobRow.request_id).where(*orphan)
        async with self._database.connect() as connection:
            jobs = {row.id: Job.of(row) for row in await connection.execute(wanted.limit(BATCH_ROWS))}
        for job in jobs.values():
            await self._write_row(job)

    async def _write_row(self, job: Job) -> None:
        async with self._database.begin() as connection:
            # Nobody else gets further with this job until we are done.
            await connection.execute(update(JobRow).where(JobRow.seq == job.seq).values(request_id=job.request_id))
            if await connection.scalar(select(Usage.id).where(Usage.request_id == job.request_id)) is None:
                record = record_of(job)
                await connection.execute(insert(Usage), [vars(record)])
                await count_records(connection, [record])

    # --- webhooks ---

    async def due(self, now: datetime, lease: timedelta) -> list[Job]:
        """Take jobs whose webhook is to be tried; they come back after the lease if nobody says otherwise."""
        late = JobRow.hook_at <= now
        among = select(JobRow.seq).where(late).limit(BATCH_ROWS).scalar_subquery()
        async with self._database.connect() as connection:
            if await connection.scalar(select(JobRow.seq).where(late).limit(1)) is None:
                return []
        taken = update(JobRow).where(JobRow.seq.in_(among), late)
        values = {"hook_at": now + lease, "hook_tries": JobRow.hook_tries + 1}
        async with self._database.begin() as connection:
            return [Job.of(row) for row in await connection.execute(taken.values(values).returning(*COLUMNS))]

    async def told(self, job: Job, again_at: datetime | None) -> None:
        """Note that a webhook got through, or when it is to be tried again."""
        own = update(JobRow).where(JobRow.seq == job.seq, JobRow.hook_tries == job.hook_tries)
        async with self._database.begin() as connection:
            await connection.execute(own.values(hook_at=again_at))

    async def _one(self, *wanted: ColumnElement[bool]) -> Job | None:
        async with self._database.connect() as connection:
            found = select(*COLUMNS).where(*wanted, JobRow.is_deleted.is_(False))
            row = (await connection.execute(found)).one_or_none()
            return None if row is None else Job.of(row)

    async def _end(
        self, state: JobState, values: Mapping[str, Any], *wanted: ColumnElement[bool], receipt: Receipt | None = None
    ) -> Job | None:
        now = datetime.now(UTC)
        ended = {
            "state": state,
            "completed_at": now,
            "expires_at": None if self._retention is None else now + self._retention,
            "hook_at": case((JobRow.hook_url.is_(None), None), else_=literal(now, JobRow.hook_at.type)),
        }
        return await self._move({**values, **ended}, JobRow.state.in_(OPEN), *wanted, receipt=receipt)

    async def _move(
        self, values: Mapping[str, Any], *wanted: ColumnElement[bool], receipt: Receipt | None = None
    ) -> Job | None:
        """Change one job and tell of it, in one transaction."""
        async with self._database.begin() as connection:
            changed = update(JobRow).where(*wanted).values(dict(values)).returning(*COLUMNS)
            row = (await connection.execute(changed)).one_or_none()
            if row is None:
                return None
            await _tell(connection, row)
            if receipt is not None:
                await write(connection, [receipt])
            return Job.of(row)


def record_of(job: Job) -> Record:
    """The request that a job came by, as far as the job knows."""
    return Record(
        request_id=job.request_id,
        started_at=job.created_at,
        method="POST",
        endpoint=job.route,
        client_address="" if job.caller else job.turn,
        response_seconds=0,
        first_byte_seconds=None,
        status=202,
        bytes_out=0,
        ending="complete",
        successful=True,
        caller=job.caller,
        owner=job.owner,
        route=job.route,
        model=job.model,
        modality=job.kind,
        prompt=None,
        output=None,
    )


async def _tell(connection: AsyncConnection, row: Any) -> None:
    told = {"job_seq": row.seq, "at": datetime.now(UTC), "state": row.state, "step": row.step}
    await connection.execute(insert(EventRow).values(told))


def _of(caller: str | None) -> Sequence[ColumnElement[bool]]:
    return () if caller is None else (JobRow.caller == caller,)


def _waits() -> Sequence[ColumnElement[bool]]:
    return JobRow.executor == NOBODY, JobRow.state.in_(OPEN)


def _held(job: Job) -> Sequence[ColumnElement[bool]]:
    """It is still this attempt's: whoever was paused, and has been given up for dead, changes nothing any more."""
    return JobRow.seq == job.seq, JobRow.executor == job.executor, JobRow.attempt == job.attempt
