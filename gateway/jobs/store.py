"""Every move of a job, one transaction each: conditional updates, so that of several who try only one succeeds."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from secrets import randbelow
from typing import Any, Self, cast

from sqlalchemy import ColumnElement, Executable, case, delete, func, insert, literal, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.database.database import for_reading
from gateway.errors import NoSuchPlace
from gateway.jobs import statements
from gateway.jobs.books import give_back, pay
from gateway.jobs.errors import JobsUnavailable
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
    UploadRow,
    readable,
)
from gateway.jobs.statements import COLUMNS
from services.schema import Receipt

logger = logging.getLogger("atelier.jobs")

AWAY = (SQLAlchemyError, OSError)  # OSError: a server that does not answer
NOT_YET = ("started_at", "completed_at", "expires_at", "seed", "hook_at", "error")
UNASKED = ("places", "idempotency", "hook_url")
BATCH_ROWS = 100
UNREADABLE_PAUSE = timedelta(seconds=60)  # before a job is looked at again that another version has written


def fresh() -> dict[str, Any]:
    """What a job has that nobody has begun yet."""
    nothing = {"outputs": [], "usage": {}, "queue_seconds": 0, "run_seconds": 0, "hook_tries": 0}
    return {"state": "queued", "executor": NOBODY, "step": 0, "breaks": 0, **dict.fromkeys(NOT_YET), **nothing}


@dataclass(frozen=True)
class Candidate:
    """A job that waits, among the oldest of its caller's for a task."""

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
        self._reading = for_reading(database)
        self._retention = retention

    # --- callers ---

    async def add(self, values: Mapping[str, Any], *, has_files: bool) -> Job:
        """Accept a job, of which there may be files already.

        Args:
            values: of its columns; what is not named is as of a job that nobody has begun.
            has_files: whether it has.

        Raises:
            IntegrityError: its caller has used the idempotency key already.
            JobsUnavailable: the files were given up meanwhile, as others took us for dead.
        """
        async with self._database.begin() as connection:
            new = {"fingerprint": "", "attempt": 0, "is_deleted": False, "cancelled": []}
            row = {**fresh(), **dict.fromkeys(UNASKED), **new, **values}
            seq = await connection.scalar(statements.ADD, row)
            job = Job.made({**row, "seq": seq})
            await _tell(connection, [job])
            named = {"its_id": job.id, "its_executor": job.accepted_by}
            if has_files and not (await connection.execute(statements.USE_UPLOAD, named)).rowcount:
                raise JobsUnavailable("the files of this were given up while the gateway stood still; send it again")
            return job

    async def note_upload(self, job_id: str, executor: str) -> None:
        """Say that files are kept for a job that is not accepted yet: if its gateway dies, somebody deletes them."""
        async with self._database.begin() as connection:
            await connection.execute(insert(UploadRow).values(job_id=job_id, accepted_by=executor))

    async def forget_upload(self, job_id: str) -> None:
        """Say that there are none any more."""
        async with self._database.begin() as connection:
            await connection.execute(statements.FORGET_UPLOAD, {"its_id": job_id})

    async def abandoned(self) -> list[str]:
        """Take what dead gateways have kept for jobs that they did not accept: woken, they cannot any more."""
        dead = UploadRow.accepted_by.not_in(select(GatewayRow.id))
        among = select(UploadRow.job_id).where(dead).limit(BATCH_ROWS).scalar_subquery()
        taken = update(UploadRow).where(UploadRow.job_id.in_(among), dead).values(accepted_by=NOBODY)
        async with self._database.begin() as connection:
            return list(await connection.scalars(taken.returning(UploadRow.job_id)))

    async def get(self, job_id: str, caller: str | None) -> Job | None:
        """Look a job up, if it is the caller's; None as a caller sees all."""
        if caller is None:
            return await self._one(statements.OF_ANYBODY, its_id=job_id)
        return await self._one(statements.OF_CALLER, its_id=job_id, its_caller=caller)

    async def repeated(self, idempotency: str) -> Job | None:
        """The job that a key of a caller's stands for; it may have been deleted just now."""
        return await self._one(statements.REPEATED, its_key=idempotency)

    async def page(self, query: Query, num_rows: int) -> list[Job]:
        """List jobs.

        Raises:
            NoSuchPlace: there is no such job to go on after.
        """
        wanted = [*_of(query.caller), JobRow.is_deleted.is_(False)]
        for column, value in ((JobRow.state, query.state), (JobRow.kind, query.kind), (JobRow.route, query.route)):
            if value is not None:
                wanted.append(column == value)
        if query.after is not None:
            other = select(JobRow.seq).where(JobRow.id == query.after, *_of(query.caller)).scalar_subquery()
            wanted.append(JobRow.seq > other if query.ascending else JobRow.seq < other)
        order = JobRow.seq if query.ascending else JobRow.seq.desc()
        async with self._database.connect() as connection:
            rows = (await connection.execute(select(*COLUMNS).where(*wanted).order_by(order).limit(num_rows))).all()
            if query.after is not None and not rows and await connection.scalar(select(other)) is None:
                raise NoSuchPlace(query.after)
            return readable(rows)

    async def num_ahead(self, job: Job) -> int:
        """How many jobs wait for the same task, and came before."""
        async with self._reading.connect() as connection:
            number = await connection.scalar(statements.NUM_AHEAD, {"its_task": job.task, "its_seq": job.seq})
            return int(number or 0)

    async def changes(self, job: Job, after: int) -> list[Change]:
        """Changes of a job behind the one of that number, in order."""
        async with self._reading.connect() as connection:
            rows = await connection.execute(statements.CHANGES, {"its_seq": job.seq, "last": after})
            return [Change(row.id, row.at, cast(JobState, row.state), row.step) for row in rows]

    async def cancel(self, job_id: str, caller: str | None) -> Job | None:
        """End a job that has not ended; None: it had."""
        values = self._end_of(None, "cancelled") | {
            "error": {"code": "cancelled", "message": "the job was cancelled"},
            "hook_at": case((JobRow.hook_url.is_(None), None), else_=literal(datetime.now(UTC), JobRow.hook_at.type)),
        }
        async with self._database.begin() as connection:
            job = await _change(connection, values, JobRow.id == job_id, *_of(caller), JobRow.state.in_(OPEN))
            if job is not None:
                await give_back(connection, job)
            return job

    async def requeue(self, job: Job, request_id: str, executor: str, now: datetime) -> Job | None:
        """Begin a job again that has failed or was cancelled, by a request at `executor`; None: it is under way."""
        again: dict[str, Any] = {
            **fresh(),
            "request_id": request_id,
            "task": job.steps[0].task,
            "accepted_by": executor,
            "created_at": now,
            "not_before": now,
            "cancelled": [vars(each) for each in job.was_cancelled],
        }
        its = JobRow.id == job.id, JobRow.attempt == job.attempt, JobRow.is_deleted.is_(False)
        ended = *its, JobRow.state.in_(("failed", "cancelled"))
        async with self._database.begin() as connection:
            return await _change(connection, again, *ended)

    async def mark_deleted(self, job_id: str, caller: str | None, until: datetime) -> Job | None:
        """Hide a job that has ended from everybody; its files are to follow, and by then its row."""
        marked = update(JobRow).where(JobRow.id == job_id, *_of(caller), JobRow.state.in_(ENDED))
        values = {"is_deleted": True, "expires_at": until, "idempotency": None}
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

    async def waiting(
        self, tasks: Collection[str], depth: int, now: datetime
    ) -> tuple[list[Candidate], Counter[tuple[str, str]]]:
        """The `depth` oldest jobs of each caller for each task, and how many run anywhere (by task and caller)."""
        async with self._reading.connect() as connection:
            rows = await connection.execute(statements.WAITING, {"tasks": list(tasks), "depth": depth, "now": now})
            found = [Candidate(*row) for row in rows]
            if not found:
                return [], Counter()
            counted = await connection.execute(statements.RUNNING)
            return found, Counter({(task, turn): number for task, turn, number in counted})

    async def claim(self, seqs: Collection[int], executor: str, now: datetime) -> list[Job]:
        """Take those of these jobs that nobody has taken yet; those that we cannot read wait for somebody who can."""
        taken: list[Job] = []
        rest = set(seqs)
        async with self._database.begin() as connection:
            for state in OPEN:
                if not rest:
                    break
                named = {"seqs": list(rest), "its_executor": executor, "now": now}
                rows = (await connection.execute(statements.TAKE[state], named)).all()
                jobs = readable(rows)
                taken += jobs
                rest -= {row.seq for row in rows}
                unreadable = {row.seq for row in rows} - {job.seq for job in jobs}
                if unreadable:
                    later = {"executor": NOBODY, "not_before": now + UNREADABLE_PAUSE}
                    await connection.execute(update(JobRow).where(JobRow.seq.in_(unreadable)).values(later))
                if state == "queued":  # else nothing changes that callers see
                    await _tell(connection, jobs)
        return taken

    async def put_back(self, job: Job, not_before: datetime, *, breaks: int) -> bool:
        """Let a job wait until somebody takes it again; whether it was still ours."""
        values = {"executor": NOBODY, "not_before": not_before, "breaks": breaks}
        async with self._database.begin() as connection:
            return await _moved(connection, job, values)

    async def step_done(self, job: Job, outcome: Outcome, receipt: Receipt) -> bool:
        """Note what a step came to: the job waits for the next one, or has ended; False: it was not ours any more.

        Receipt and reservation are settled in the same transaction: what is done is paid, once.
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
        after = replace(job, step=job.step + 1)
        if after.step == len(job.steps):
            after = replace(job, state="completed")
            values |= self._end_of(job.hook_url, "completed")
        else:
            values |= {"step": after.step, "task": job.steps[after.step].task, "executor": NOBODY, "breaks": 0}
        async with self._database.begin() as connection:
            if not await _moved(connection, job, values):
                return False
            await _tell(connection, [after])
            await pay(connection, job, receipt)
            return True

    async def fail(self, job: Job, error: Mapping[str, Any]) -> bool:
        """End a job with an error; False: it was not ours any more."""
        values = self._end_of(job.hook_url, "failed") | {"error": dict(error)}
        async with self._database.begin() as connection:
            if not await _moved(connection, job, values):
                return False
            await _tell(connection, [replace(job, state="failed")])
            await give_back(connection, job)
            return True

    async def exists(self, job_id: str) -> bool:
        """Whether there is such a job, deleted or not."""
        async with self._reading.connect() as connection:
            return await connection.scalar(statements.EXISTS, {"its_id": job_id}) is not None

    async def held(self, executor: str) -> dict[str, int]:
        """The jobs that an executor holds, and at which attempt."""
        async with self._reading.connect() as connection:
            rows = await connection.execute(statements.HOLDS, {"its_executor": executor})
            return {row.id: row.attempt for row in rows}

    async def release(self, executor: str) -> int:
        """Let others have all that an executor holds; how many jobs those were."""
        async with self._database.begin() as connection:
            return await _freed(connection, executor)

    async def let_go(self, executor: str, strays: Mapping[str, int]) -> None:
        """Let others have what an executor holds and does not work on: jobs, and at which attempt."""
        async with self._database.begin() as connection:
            for job_id, attempt in strays.items():
                its = JobRow.id == job_id, JobRow.executor == executor, JobRow.attempt == attempt
                await connection.execute(update(JobRow).where(*its, JobRow.state.in_(OPEN)).values(executor=NOBODY))

    # --- gateways ---

    @asynccontextmanager
    async def present(self, executor: str) -> AsyncGenerator[Self]:
        """Let an executor be known meanwhile: as long as it is, what it still has to write down will come."""
        await self.beat(executor, {})
        try:
            yield self
        finally:
            try:
                async with self._database.begin() as connection:
                    await connection.execute(delete(GatewayRow).where(GatewayRow.id == executor))
            except AWAY as error:
                logger.warning("jobs: others notice only by our silence that we are gone: %s", type(error).__name__)

    async def beat(self, executor: str, live: Mapping[str, Any]) -> bool:
        """Say that an executor lives, and what it works on; whether it was known."""
        said = {"its_executor": executor, "said": dict(live)}
        async with self._database.begin() as connection:
            if (await connection.execute(statements.BEAT, said)).rowcount:
                return True
            first = randbelow(2**40)  # and none that others may have seen before they took it for dead
            await connection.execute(insert(GatewayRow).values(id=executor, beats=first, live=dict(live)))
            return False

    async def gateways(self) -> dict[str, int]:
        """All executors and their numbers."""
        async with self._reading.connect() as connection:
            return {row.id: row.beats for row in await connection.execute(statements.ALL_GATEWAYS)}

    async def bury(self, executor: str, beats: int) -> int | None:
        """Let others have what a dead executor held; None: it lives, or somebody else has buried it."""
        dead = delete(GatewayRow).where(GatewayRow.id == executor, GatewayRow.beats == beats)
        async with self._database.begin() as connection:
            if not (await connection.execute(dead)).rowcount:
                return None
            return await _freed(connection, executor)

    async def live_at(self, executor: str, job_id: str) -> Any:
        """What another gateway has said of a job that it works on."""
        async with self._reading.connect() as connection:
            live = await connection.scalar(statements.LIVE, {"its_executor": executor})
        return (live or {}).get(job_id)

    # --- webhooks ---

    async def due(
        self, now: datetime, lease: timedelta, *, number: int, of_one: int, busy: Collection[str]
    ) -> list[Job]:
        """Take jobs whose webhook is to be tried; they come back after the lease if nobody says otherwise.

        Args:
            now: what is due by then.
            lease: for an attempt.
            number: of jobs at most.
            of_one: caller's, at most.
            busy: callers of whom there are enough under way.
        """
        async with self._reading.connect() as connection:
            if await connection.scalar(statements.NEXT_HOOK, {"now": now}) is None:
                return []
        late = JobRow.hook_at <= now, JobRow.turn.not_in(busy)
        place = func.row_number().over(partition_by=JobRow.turn, order_by=(JobRow.hook_at, JobRow.seq)).label("place")
        lines = select(JobRow.seq, place).where(*late).subquery()
        among = select(lines.c.seq).where(lines.c.place <= of_one).order_by(lines.c.place).limit(number)
        taken = update(JobRow).where(JobRow.seq.in_(among.scalar_subquery()), *late)
        values = {"hook_at": now + lease, "hook_tries": JobRow.hook_tries + 1}
        async with self._database.begin() as connection:
            return readable(await connection.execute(taken.values(values).returning(*COLUMNS)))

    async def told(self, job: Job, again_at: datetime | None) -> None:
        """Note that a webhook got through, or when it is to be tried again."""
        attempt = JobRow.hook_tries == job.hook_tries, JobRow.completed_at == job.completed_at
        async with self._database.begin() as connection:
            await connection.execute(update(JobRow).where(JobRow.seq == job.seq, *attempt).values(hook_at=again_at))

    async def _one(self, statement: Executable, **named: str) -> Job | None:
        async with self._reading.connect() as connection:
            row = (await connection.execute(statement, named)).one_or_none()
            return None if row is None else Job.of(row)

    def _end_of(self, hook_url: str | None, state: JobState) -> dict[str, Any]:
        """What a job that has ended has besides."""
        now = datetime.now(UTC)
        return {
            "state": state,
            "completed_at": now,
            "expires_at": None if self._retention is None else now + self._retention,
            "hook_at": None if hook_url is None else now,
        }


async def _change(connection: AsyncConnection, values: Mapping[str, Any], *wanted: ColumnElement[bool]) -> Job | None:
    """Change one job and tell of it."""
    changed = update(JobRow).where(*wanted).values(dict(values)).returning(*COLUMNS)
    row = (await connection.execute(changed)).one_or_none()
    if row is None:
        return None
    job = Job.of(row)
    await _tell(connection, [job])
    return job


async def _moved(connection: AsyncConnection, job: Job, values: Mapping[str, Any]) -> bool:
    """Change a job that is still this attempt's; whether it was."""
    named = {"its_seq": job.seq, "its_executor": job.executor, "its_attempt": job.attempt}
    return bool((await connection.execute(statements.MOVE, {**values, **named})).rowcount)


async def _freed(connection: AsyncConnection, executor: str) -> int:
    own = update(JobRow).where(JobRow.executor == executor, JobRow.state == "in_progress")
    return (await connection.execute(own.values(executor=NOBODY))).rowcount


async def _tell(connection: AsyncConnection, jobs: Sequence[Job]) -> None:
    now = datetime.now(UTC)
    told = [{"job_seq": job.seq, "at": now, "state": job.state, "step": job.step} for job in jobs]
    if told:
        await connection.execute(statements.TELL, told)


def _of(caller: str | None) -> Sequence[ColumnElement[bool]]:
    return () if caller is None else (JobRow.caller == caller,)
