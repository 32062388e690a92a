"""Jobs as they are shown: our own shape, and the SDK's of a video."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gateway.jobs.desk import Seen
from gateway.jobs.schema import Job, JobState, Step
from services.registry import Task
from services.schema import ErrorDetail, error_type

PICTURES = frozenset({"image", "images", "mask", "input_reference"})
FACES = {"/v1/videos": "/v1/videos", "/v1/3d/generations": "/v1/3d"}


class OutputView(BaseModel):
    """A file of a job."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    variant: str
    step: int
    """Of which step, counted from 1."""
    media_type: str
    bytes: int
    sha256: str
    url: str


class JobView(BaseModel):
    """A job."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    object: Literal["job"] = "job"
    status: JobState
    kind: Task
    """What its last step makes."""
    route: str
    prompt: str | None
    """What is to be made, said or answered: the words of the last step that was given any; null: none, or long ones."""
    asked: dict[str, Any]
    """The fields of the last step's request, without pictures; empty where it was long."""
    model: str | None
    seed: int | None
    progress: int
    """Percent."""
    step: int
    """That is next, or under way; counted from 1."""
    steps: list[Task]
    step_progress: dict[str, Any]
    """Of the model's iterations: `step` of `steps`, `eta_seconds`; `position` in the worker's queue."""
    queue_position: int | None
    """Jobs that came before and wait; null: it does not wait."""
    eta_seconds: float | None
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    """When it is deleted with its files."""
    attempts: int
    """Calls of workers, those included that came to nothing."""
    queue_seconds: float
    run_seconds: float
    usage: dict[str, float]
    error: ErrorDetail | None
    outputs: list[OutputView]
    links: dict[str, str]

    @classmethod
    def of(cls, seen: Seen) -> "JobView":
        """Show a job."""
        job = seen.job
        own = f"/v1/jobs/{job.id}"
        return cls(
            id=job.id,
            status=job.state,
            kind=job.kind,
            route=job.route,
            prompt=prompt_of(job),
            asked=asked_of(job.steps[-1]),
            model=job.model or None,
            seed=job.seed,
            progress=seen.percent,
            step=job.step + 1,
            steps=[step.task for step in job.steps],
            step_progress=dict(seen.progress),
            queue_position=seen.num_ahead,
            eta_seconds=seen.eta_seconds,
            created_at=seconds(job.created_at) or 0,
            started_at=seconds(job.started_at),
            completed_at=seconds(job.completed_at),
            expires_at=seconds(job.expires_at),
            attempts=job.attempt,
            queue_seconds=round(job.queue_seconds, 3),
            run_seconds=round(job.run_seconds, 3),
            usage=job.usage,
            error=error_of(job),
            outputs=[
                OutputView(
                    variant=each.variant,
                    step=each.step + 1,
                    media_type=each.artefact.media_type,
                    bytes=each.artefact.num_bytes,
                    sha256=each.artefact.sha256,
                    url=f"{own}/content?variant={each.variant}"
                    + ("" if job.output(each.variant) is each else f"&step={each.step + 1}"),
                )
                for each in job.outputs
            ],
            links={"self": own, "events": f"{own}/events", "cancel": f"{own}/cancel", "retry": f"{own}/retry"}
            | ({"content": f"{own}/content"} if job.output(None) else {}),
        )


class JobPage(BaseModel):
    """Jobs, newest first unless `order=asc`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    data: list[JobView]
    first_id: str | None
    last_id: str | None
    has_more: bool
    """Whether there are more; `after` with `last_id` asks for them."""


class MediaError(BaseModel):
    """Why there is none."""

    code: str
    message: str


class MediaView(BaseModel):
    """A job as OpenAI's video API shows one; `object` says of what."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    object: Literal["video", "mesh"]
    status: Literal["queued", "in_progress", "completed", "failed"]
    """A cancelled one is `failed`, with `cancelled` as its error's code: the SDK knows no other word."""
    progress: int
    model: str
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    seconds: str | None
    size: str | None
    seed: int | None
    remixed_from_video_id: None = None
    error: MediaError | None
    variants: list[str]

    @classmethod
    def of(cls, seen: Seen) -> "MediaView":
        """Show a job."""
        job = seen.job
        asked = asked_of(job.steps[-1])
        frames, fps = asked.get("num_frames"), asked.get("fps")
        return cls(
            id=job.id,
            object="video" if job.kind == "video" else "mesh",
            status="failed" if job.state == "cancelled" else job.state,
            progress=seen.percent,
            model=job.model,
            created_at=seconds(job.created_at) or 0,
            completed_at=seconds(job.completed_at),
            expires_at=seconds(job.expires_at),
            prompt=prompt_of(job),
            seconds=f"{int(frames) / int(fps):g}" if frames and fps else None,
            size=asked.get("size"),
            seed=job.seed if job.seed is not None else asked.get("seed"),
            error=None if job.error is None else MediaError(code=job.error["code"], message=job.error["message"]),
            variants=[each.variant for each in job.outputs],
        )


class MediaPage(BaseModel):
    """A page of them."""

    object: Literal["list"] = "list"
    data: list[MediaView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """It is gone, with its files."""

    id: str
    object: Literal["job.deleted", "video.deleted", "mesh.deleted"]
    deleted: Literal[True] = True


def prompt_of(job: Job) -> str | None:
    """The words that a job was given."""
    return next(filter(None, (words_of(asked_of(step)) for step in reversed(job.steps))), None)


def words_of(asked: Mapping[str, Any]) -> str | None:
    """A prompt, what is to be said, or the last message of a conversation."""
    for words in (asked.get("prompt"), asked.get("input"), asked.get("messages")):
        match words:
            case str():
                return words
            case [*_, {"content": str(words)}]:
                return words
            case [*_, {"content": [*parts]}]:
                return (
                    " ".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part) or None
                )
    return None


def asked_of(step: Step) -> dict[str, Any]:
    """What a step was asked, as far as it lies in the row."""
    fields = {**(step.body or {}), **(step.fields or {})}
    return {name: value for name, value in fields.items() if name not in PICTURES}


def error_of(job: Job) -> ErrorDetail | None:
    """What ended a job."""
    if job.error is None:
        return None
    return ErrorDetail(**{"type": error_type(500), **job.error})  # a row of an older version has none


def seconds(instant: datetime | None) -> int | None:
    """As OpenAI gives instants: since the epoch."""
    return None if instant is None else int(instant.timestamp())
