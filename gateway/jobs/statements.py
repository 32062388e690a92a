"""The statements that every job needs, each built once: to build one takes longer than to run it."""

from sqlalchemy import ColumnElement, Executable, bindparam, delete, func, insert, select, update

from gateway.database.types import Tables
from gateway.jobs.schema import NOBODY, OPEN, EventRow, GatewayRow, JobRow, JobState, UploadRow

JOBS, EVENTS, UPLOADS, GATEWAYS = (
    Tables.metadata.tables[each.__tablename__] for each in (JobRow, EventRow, UploadRow, GatewayRow)
)
COLUMNS = tuple(JOBS.c)

WAITS: tuple[ColumnElement[bool], ...] = (JOBS.c.executor == NOBODY, JOBS.c.state.in_(OPEN))
HELD: tuple[ColumnElement[bool], ...] = (  # it is still this attempt's: who was given up for dead changes nothing more
    JOBS.c.seq == bindparam("its_seq"),
    JOBS.c.executor == bindparam("its_executor"),
    JOBS.c.attempt == bindparam("its_attempt"),
    JOBS.c.state.in_(OPEN),
)
SEEN: tuple[ColumnElement[bool], ...] = (JOBS.c.id == bindparam("its_id"), JOBS.c.is_deleted.is_(False))

ADD = insert(JOBS).returning(JOBS.c.seq)
TELL = insert(EVENTS)
FORGET_UPLOAD = delete(UPLOADS).where(UPLOADS.c.job_id == bindparam("its_id"))
USE_UPLOAD = FORGET_UPLOAD.where(UPLOADS.c.accepted_by == bindparam("its_executor"))
OF_ANYBODY = select(*COLUMNS).where(*SEEN)
OF_CALLER = OF_ANYBODY.where(JOBS.c.caller == bindparam("its_caller"))
REPEATED = select(*COLUMNS).where(JOBS.c.idempotency == bindparam("its_key"))
EXISTS = select(JOBS.c.seq).where(JOBS.c.id == bindparam("its_id"))
NUM_AHEAD = select(func.count()).where(*WAITS, JOBS.c.task == bindparam("its_task"), JOBS.c.seq < bindparam("its_seq"))
CHANGES = (
    select(EVENTS.c.id, EVENTS.c.at, EVENTS.c.state, EVENTS.c.step)
    .where(EVENTS.c.job_seq == bindparam("its_seq"), EVENTS.c.id > bindparam("last"))
    .order_by(EVENTS.c.id)
)

MOVE = update(JOBS).where(*HELD)
HOLDS = select(JOBS.c.id, JOBS.c.attempt).where(JOBS.c.executor == bindparam("its_executor"), JOBS.c.state.in_(OPEN))

_AMONG = JOBS.c.task.in_(bindparam("tasks", expanding=True))
_PLACE = func.row_number().over(partition_by=(JOBS.c.task, JOBS.c.turn), order_by=JOBS.c.seq).label("place")
_LINES = (
    select(JOBS.c.task, JOBS.c.turn, JOBS.c.seq, JOBS.c.places, _PLACE)
    .where(*WAITS, _AMONG, JOBS.c.not_before <= bindparam("now", type_=JOBS.c.not_before.type))
    .subquery()
)
WAITING = select(_LINES.c.task, _LINES.c.turn, _LINES.c.seq, _LINES.c.places).where(
    _LINES.c.place <= bindparam("depth")
)
RUNNING = (
    select(JOBS.c.task, JOBS.c.turn, func.count())
    .where(JOBS.c.executor != NOBODY, JOBS.c.state == "in_progress")
    .group_by(JOBS.c.task, JOBS.c.turn)
)


def _taking(state: JobState) -> Executable:
    """Of the jobs `seqs`, take those that nobody has; whoever is taking one just now gets it."""
    its = JOBS.c.seq.in_(bindparam("seqs", expanding=True)), JOBS.c.executor == NOBODY, JOBS.c.state == state
    own = select(JOBS.c.seq).where(*its).order_by(JOBS.c.seq).with_for_update(skip_locked=True)
    now = bindparam("now", type_=JOBS.c.started_at.type)
    values = {
        "executor": bindparam("its_executor"),
        "attempt": JOBS.c.attempt + 1,
        "state": "in_progress",
        "started_at": func.coalesce(JOBS.c.started_at, now),
    }
    return update(JOBS).where(JOBS.c.seq.in_(own)).values(values).returning(*COLUMNS)


TAKE = {state: _taking(state) for state in OPEN}
BEAT = (
    update(GATEWAYS)
    .where(GATEWAYS.c.id == bindparam("its_executor"))
    .values(beats=GATEWAYS.c.beats + 1, live=bindparam("said", type_=GATEWAYS.c.live.type))
)
ALL_GATEWAYS = select(GATEWAYS.c.id, GATEWAYS.c.beats)
LIVE = select(GATEWAYS.c.live).where(GATEWAYS.c.id == bindparam("its_executor"))
NEXT_HOOK = select(JOBS.c.seq).where(JOBS.c.hook_at <= bindparam("now", type_=JOBS.c.hook_at.type)).limit(1)
