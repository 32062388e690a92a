"""A job as it lies in the database, and the tables around it; knows no HTTP."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, Self

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from gateway.artefacts.store import Artefact
from gateway.database.types import Line, Serial, Tables, UtcDateTime
from gateway.jobs.errors import UnreadableJob
from services.registry import Task

logger = logging.getLogger("atelier.jobs")

JobState = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
OPEN: Final[tuple[JobState, ...]] = ("queued", "in_progress")
ENDED: Final[tuple[JobState, ...]] = ("completed", "failed", "cancelled")
MAX_CANCELLED: Final = 20  # attempts that are remembered
NOBODY: Final = ""  # as an executor: whoever has a place may take the job


class JobRow(Tables):
    """One row a job; what is under way of it is not here, but in the memory of the gateway that runs it."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "executor", "state", "task", "turn"), Index(None, "caller", "seq"))

    seq: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    caller: Mapped[str] = mapped_column(Line(64))
    owner: Mapped[str] = mapped_column(Line(128))
    turn: Mapped[str] = mapped_column(Line(64))
    """Who takes turns with others: the key, or else the address."""
    places: Mapped[int | None]
    """How many jobs of this caller may run at once; None: any number."""
    kind: Mapped[str] = mapped_column(String(16))
    """Task of the last step."""
    route: Mapped[str] = mapped_column(Line(256))
    request_id: Mapped[str] = mapped_column(Line(128), index=True)
    """Of the request that it came by: reservations and usage go by it."""
    title: Mapped[str] = mapped_column(Line(200))
    steps: Mapped[Any] = mapped_column(JSON, nullable=False)
    step: Mapped[int]
    task: Mapped[str] = mapped_column(String(16))
    """Of the step that is next, or under way."""
    state: Mapped[str] = mapped_column(String(16))
    executor: Mapped[str] = mapped_column(String(32))
    accepted_by: Mapped[str] = mapped_column(String(32), server_default="")
    """The gateway that writes down the request: where it is dead, somebody else does."""
    attempt: Mapped[int]
    breaks: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    not_before: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    is_deleted: Mapped[bool]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    model: Mapped[str] = mapped_column(Line(200))
    queue_seconds: Mapped[float]
    run_seconds: Mapped[float]
    usage: Mapped[Any] = mapped_column(JSON, nullable=False)
    error: Mapped[Any] = mapped_column(JSON, nullable=False)
    outputs: Mapped[Any] = mapped_column(JSON, nullable=False)
    idempotency: Mapped[str | None] = mapped_column(String(64), unique=True)
    """Digest of caller and key."""
    fingerprint: Mapped[str] = mapped_column(String(64))
    hook_url: Mapped[str | None] = mapped_column(Line(2000))
    hook_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    """When the webhook is to be tried; None: there is nothing to tell, or no more."""
    hook_tries: Mapped[int]
    cancelled: Mapped[Any] = mapped_column(JSON, nullable=False, server_default="[]")
    """Attempts that were cancelled before it began again: each is paid by the request that it was made for."""


class EventRow(Tables):
    """A change of a job's state or step; whoever follows sees each once."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    job_seq: Mapped[int] = mapped_column(ForeignKey("jobs.seq", ondelete="CASCADE"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[str] = mapped_column(String(16))
    step: Mapped[int]


class UploadRow(Tables):
    """Files that are kept for a job whose own row is not written yet."""

    __tablename__ = "uploads"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    accepted_by: Mapped[str] = mapped_column(String(32))


class GatewayRow(Tables):
    """A gateway that lives, as long as its number grows; with the latest of what it works on."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    beats: Mapped[int] = mapped_column(BigInteger)
    live: Mapped[Any] = mapped_column(JSON, nullable=False)


@dataclass(frozen=True)
class Output:
    """A file that came of a step."""

    variant: str
    step: int
    artefact: Artefact

    def row(self) -> dict[str, Any]:
        """As it lies in the database."""
        return {"variant": self.variant, "step": self.step, **vars(self.artefact)}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """As it was."""
        kept = {name: value for name, value in row.items() if name not in ("variant", "step")}
        return cls(row["variant"], row["step"], Artefact(**kept))


@dataclass(frozen=True)
class Step:
    """A call of a worker.

    Args:
        task: whose worker.
        path: of its route.
        model: that is asked; None: what the body says, or the default.
        body: a JSON object; None: the step has a form, or its body is a file.
        body_file: the JSON body, where it is long.
        fields: of a form.
        files: of a form: field, name and what was uploaded.
        takes: what of the output of the step before goes where; only in chains.
    """

    task: Task
    path: str
    model: str | None = None
    body: dict[str, Any] | None = None
    body_file: Artefact | None = None
    fields: dict[str, str] | None = None
    files: tuple[tuple[str, str, Artefact], ...] = ()
    takes: str | None = None

    def row(self) -> dict[str, Any]:
        """As it lies in the database."""
        kept = {
            **vars(self),
            "body_file": vars(self.body_file) if self.body_file else None,
            "files": [[name, filename, vars(artefact)] for name, filename, artefact in self.files],
        }
        return {name: value for name, value in kept.items() if value}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """As it was."""
        file = row.get("body_file")
        return cls(
            **{name: value for name, value in row.items() if name not in ("body_file", "files")},
            body_file=Artefact(**file) if file else None,
            files=tuple((name, filename, Artefact(**kept)) for name, filename, kept in row.get("files", ())),
        )


@dataclass(frozen=True)
class Cancelled:
    """An attempt that was cancelled, and whose job has begun again since.

    Args:
        attempt: its number.
        step: that it was for.
        request_id: of the request that it was for.
        accepted_by: the gateway that writes that down.
    """

    attempt: int
    step: int
    request_id: str
    accepted_by: str

    @property
    def names(self) -> dict[str, Any]:
        """What its receipt goes by."""
        return {"request_id": self.request_id, "attempt": self.step + 1}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the table."""

    seq: int
    id: str
    caller: str
    owner: str
    turn: str
    places: int | None
    kind: str
    route: str
    request_id: str
    title: str
    steps: tuple[Step, ...]
    step: int
    task: Task
    state: JobState
    executor: str
    accepted_by: str
    attempt: int
    breaks: int
    created_at: datetime
    not_before: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None
    is_deleted: bool
    seed: int | None
    model: str
    queue_seconds: float
    run_seconds: float
    usage: dict[str, float]
    error: dict[str, Any] | None
    outputs: tuple[Output, ...]
    idempotency: str | None
    fingerprint: str
    hook_url: str | None
    hook_at: datetime | None
    hook_tries: int
    cancelled: tuple[Cancelled, ...]

    @classmethod
    def of(cls, row: Any) -> Self:
        """Read a row.

        Raises:
            UnreadableJob: another version has written it.
        """
        try:
            return cls.made(row._mapping)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UnreadableJob("this job was written by another version of the gateway, which can read it") from error

    @classmethod
    def made(cls, columns: Mapping[str, Any]) -> Self:
        """Read what a row consists of."""
        kept = dict(columns)
        kept["steps"] = tuple(map(Step.of, kept["steps"]))
        kept["outputs"] = tuple(map(Output.of, kept["outputs"]))
        kept["cancelled"] = tuple(Cancelled(**each) for each in kept["cancelled"])
        return cls(**kept)

    @property
    def was_cancelled(self) -> tuple[Cancelled, ...]:
        """All attempts that were cancelled, so far as anybody may still hear of them; the last one first."""
        last = Cancelled(self.attempt, self.step, self.request_id, self.accepted_by)
        return ((last,) if self.state == "cancelled" else ()) + self.cancelled[:MAX_CANCELLED]

    def at(self, attempt: Cancelled) -> Self:
        """The job as it was then."""
        return replace(self, **vars(attempt))

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ENDED

    def output(self, variant: str | None, step: int | None = None) -> Output | None:
        """The file of that name, of the last step that made one or of `step`; None: the first of the last step's."""
        if variant is None:
            wanted = len(self.steps) - 1 if step is None else step
            return next((each for each in self.outputs if each.step == wanted), None)
        found = (each for each in reversed(self.outputs) if each.variant == variant and step in (None, each.step))
        return next(found, None)


def readable(rows: Iterable[Any]) -> list[Job]:
    """Read those rows that can be read: one of another version shall not hold up the others."""
    jobs = []
    for row in rows:
        try:
            jobs.append(Job.of(row))
        except UnreadableJob:
            logger.exception("job %s cannot be read", row.id)
    return jobs


@dataclass(frozen=True)
class Outcome:
    """What a step has come to."""

    outputs: tuple[Output, ...] = ()
    usage: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    model: str = ""
    queue_seconds: float = 0
    run_seconds: float = 0


@dataclass(frozen=True)
class Change:
    """A change as it is told."""

    id: int
    at: datetime
    state: JobState
    step: int
