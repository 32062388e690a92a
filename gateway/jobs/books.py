"""What jobs are paid by: receipts of steps that are done, in the name of the requests that they came by."""

import hashlib
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Text, cast, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.budgets.ledger import release_in, settle_in
from gateway.jobs.schema import GatewayRow, Job, JobRow, Outcome, readable
from gateway.jobs.statements import COLUMNS
from gateway.usage.log import unavailable
from gateway.usage.receipts import write
from gateway.usage.rollup import count_records
from gateway.usage.schema import ReceiptRow, Record, Usage
from services.schema import MAX_ATTEMPT, Receipt
from services.units import UNITS

BATCH_ROWS = 100
CALLS = "job:"  # no client's request id begins so: the receipts of calls are told from others by it


class Books:
    """Finds out who pays, and that nothing is left unpaid."""

    def __init__(self, database: AsyncEngine) -> None:
        """Look into `database`."""
        self._database = database

    async def take(self, calls: Sequence[Receipt]) -> None:
        """Take what workers say of calls: those that were cancelled are paid for as far as they got.

        Jobs that are done pay what they have come to, once; calls that were lost cost nobody anything.

        Raises:
            UsageUnavailable: the database does not answer.
        """
        by_call = {(call.request_id.removeprefix(CALLS), call.attempt): call for call in calls}
        among = JobRow.id.in_({job_id for job_id, _ in by_call})
        has_cancelled = or_(JobRow.state == "cancelled", cast(JobRow.cancelled, Text) != "[]")
        with unavailable():
            async with self._database.begin() as connection:
                for job in await _locked(connection, among, has_cancelled):
                    for each in job.was_cancelled:
                        receipt = by_call.get((job.id, min(each.attempt, MAX_ATTEMPT)))
                        if receipt is not None:
                            await pay(connection, job.at(each), receipt.model_copy(update=each.names))

    async def write_lost_rows(self) -> None:
        """Give receipts of jobs the usage rows that they lack, as the gateways that were to write them are dead."""
        orphan = select(ReceiptRow.request_id).where(ReceiptRow.usage_id.is_(None))
        is_lost = JobRow.request_id.in_(orphan), _accepted_by_dead()
        async with self._database.connect() as connection:
            lost = list(await connection.scalars(select(JobRow.seq).where(*is_lost).limit(BATCH_ROWS)))
        for seq in lost:
            async with self._database.begin() as connection:
                for job in await _locked(connection, JobRow.seq == seq):
                    await _write_row(connection, job)


async def pay(connection: AsyncConnection, job: Job, receipt: Receipt) -> None:
    """Write down what a step has made, and settle what it had reserved; its job's row must be locked already."""
    await write(connection, [receipt])
    if job.caller:  # others have no budgets
        units = receipt.units.get(UNITS[job.task], 0)
        await settle_in(connection, reservation(job.request_id, job.step), 1, units)
    living = select(GatewayRow.id).where(GatewayRow.id == job.accepted_by)
    if job.accepted_by != job.executor and await connection.scalar(living) is None:
        await _write_row(connection, job)


async def give_back(connection: AsyncConnection, job: Job) -> None:
    """Give back what the steps have reserved that will not be made; what comes of them all the same counts."""
    if job.caller:
        for step in range(job.step, len(job.steps)):
            await release_in(connection, reservation(job.request_id, step))


def reservation(request_id: str, step: int) -> str:
    """What a step has reserved under."""
    return f"{request_id}.{step}" if step else request_id


def receipt_of(job: Job, outcome: Outcome) -> Receipt:
    """What a step is paid by: one, however many attempts there were."""
    digest = hashlib.sha256(f"{job.id} {job.request_id} {job.step}".encode()).hexdigest()
    return Receipt(
        id=digest[:32],
        request_id=job.request_id,
        attempt=job.step + 1,
        modality=job.task,
        model=outcome.model,
        units=outcome.usage,
        iterations=0,
        queue_seconds=outcome.queue_seconds,
        run_seconds=outcome.run_seconds,
        ending="complete",
    )


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


async def _locked(connection: AsyncConnection, *wanted: ColumnElement[bool]) -> list[Job]:
    """Look jobs up such that nobody else gets further with them until the transaction ends."""
    locked = update(JobRow).where(*wanted).values(request_id=JobRow.request_id).returning(*COLUMNS)
    return readable(await connection.execute(locked))


async def _write_row(connection: AsyncConnection, job: Job) -> None:
    if await connection.scalar(select(Usage.id).where(Usage.request_id == job.request_id)) is None:
        record = record_of(job)
        await connection.execute(insert(Usage), [vars(record)])
        await count_records(connection, [record])


def _accepted_by_dead() -> ColumnElement[bool]:
    return JobRow.accepted_by.not_in(select(GatewayRow.id))
