"""The callers' side of jobs: accept, find, wait, cancel, begin again, delete."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from secrets import randbelow, token_hex
from typing import Any, ParamSpec, TypeVar

import anyio
from sqlalchemy.exc import IntegrityError
from starlette.requests import Request

from gateway.artefacts.store import Artefacts
from gateway.bodies import read_object
from gateway.budgets.budgets import Budgets
from gateway.callers import Caller
from gateway.errors import WorkerDied
from gateway.jobs.books import reservation
from gateway.jobs.calls import kept_whole
from gateway.jobs.errors import IdempotencyMismatch, JobsUnavailable, NoSuchJob, NotDone, NotRetriable
from gateway.jobs.foreman import Foreman
from gateway.jobs.schema import ENDED, NOBODY, Change, Job, Step
from gateway.jobs.store import AWAY, Query, Store
from gateway.metrics import TASKS
from services.registry import Task
from services.schema import MAX_SEED

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("atelier.jobs")

MAX_INLINE = 16_384  # bytes of a body that lie in the table; what is longer is a file
STREAMED = frozenset({"stream", "stream_options", "partial_images", "stream_format"})  # of no use to a job
SEEDED: frozenset[Task] = frozenset({"audio", "image", "video", "mesh"})
STAYS = timedelta(minutes=15)  # as what a deleted job still is in the table
LOOK_SECONDS = 1.0  # between two looks for what other gateways have done


@dataclass(frozen=True)
class Order:
    """A step as its caller sends it.

    Args:
        task: whose worker.
        path: of its route.
        body: `content` or `files` and `data`, as httpx takes them.
        model: that is asked for in place of what the body names.
        takes: what of the step before goes where.
    """

    task: Task
    path: str
    body: Mapping[str, Any]
    model: str | None = None
    takes: str | None = None


@dataclass(frozen=True)
class Seen:
    """A job with the latest of what is under way."""

    job: Job
    progress: Mapping[str, Any]
    preview: Mapping[str, Any] | None = None
    version: int = 0
    num_ahead: int | None = None

    @property
    def percent(self) -> int:
        """How far the job is."""
        if self.job.state == "completed":
            return 100
        step, steps = self.progress.get("step", 0), self.progress.get("steps", 0)
        done = self.job.step + (min(step / steps, 1) if steps else 0)
        return min(99, int(100 * done / len(self.job.steps)))

    @property
    def eta_seconds(self) -> float | None:
        """Until the step that is under way is done; None: nobody knows."""
        return self.progress.get("eta_seconds")


def or_unavailable(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Say that the database is away in words that a client may read."""

    @wraps(method)
    async def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except AWAY as error:
            logger.warning("jobs cannot be asked for: %s", type(error).__name__)
            raise JobsUnavailable("jobs cannot be reached at the moment; try again") from error

    return told


class Desk:
    """Takes jobs on, for all gateways that share the table."""

    def __init__(self, store: Store, foreman: Foreman, artefacts: Artefacts, budgets: Budgets, patience: float) -> None:
        """Jobs are worked on for `patience` seconds at most."""
        self.patience = patience
        self.artefacts = artefacts
        self._store = store
        self._foreman = foreman
        self._budgets = budgets
        self._uploading: set[str] = set()  # jobs that are being accepted, and have files

    @or_unavailable
    async def accept(
        self, request: Request, orders: Sequence[Order], *, route: str, title: str = "", hook_url: str | None = None
    ) -> Job:
        """Take a job on; or find the one that the same key and body stand for.

        Raises:
            IdempotencyMismatch: the key stands for another body.
            StorageFull: there is no room for what was uploaded.
            ArtefactsUnavailable: it cannot be kept.
        """
        caller: Caller = request.scope["caller"]
        request_id: str = request.scope["request_id"]
        key, fingerprint = idempotency_of(request), fingerprint_of(route, orders)
        known = await self.repeated(request)
        if known is not None:
            return the_same(known, fingerprint)
        job_id = f"job_{token_hex(12)}"
        try:
            steps = [await self._step(job_id, order) for order in orders]
            address = request.client.host if request.client else ""
            now = datetime.now(UTC)
            job = await self._store.add(
                {
                    "id": job_id,
                    "caller": caller.id,
                    "owner": caller.owner,
                    "turn": caller.id or address,
                    "places": caller.concurrent_streams,
                    "kind": steps[-1].task,
                    "route": route,
                    "request_id": request_id,
                    "title": title,
                    "steps": [step.row() for step in steps],
                    "task": steps[0].task,
                    "accepted_by": self._foreman.executor,
                    "created_at": now,
                    "not_before": now,
                    "model": steps[-1].model or named_in(orders[-1]) or "",
                    "idempotency": key,
                    "fingerprint": fingerprint,
                    "hook_url": hook_url,
                },
                has_files=any(step.files or step.body_file for step in steps),
            )
        except IntegrityError:  # the same request at the same instant
            await self._abandon(job_id)
            known = None if key is None else await self._store.repeated(key)
            if known is None:
                raise
            await self._release(request, len(orders))
            return the_same(known, fingerprint)
        except BaseException:
            await self._abandon(job_id)
            raise
        finally:
            self._uploading.discard(job_id)
        self._foreman.wake()
        return job

    @or_unavailable
    async def repeated(self, request: Request) -> Job | None:
        """The job that the request's key stands for already; looked up once for each request."""
        scope = request.scope
        if "repeats" not in scope:
            key = idempotency_of(request)
            scope["repeats"] = None if key is None else await self._store.repeated(key)
        found: Job | None = scope["repeats"]
        return found

    async def _release(self, request: Request, num_steps: int) -> None:
        """Give back what a request has reserved that begins nothing."""
        for step in range(num_steps):
            await self._budgets.release(reservation(request.scope["request_id"], step))

    async def _abandon(self, job_id: str) -> None:
        """Delete what was uploaded for a job, unless it was accepted, and only the answer was lost."""
        with anyio.CancelScope(shield=True):
            if not await self._store.exists(job_id):
                await self.artefacts.delete(job_id)
                await self._store.forget_upload(job_id)

    async def _step(self, job_id: str, order: Order) -> Step:
        """Keep what is long as files."""
        common: dict[str, Any] = {
            "task": order.task, "path": order.path, "model": order.model, "takes": order.takes,
        }  # fmt: skip
        seed = {"seed": randbelow(MAX_SEED)} if order.task in SEEDED else {}  # every attempt makes the same
        if "content" not in order.body:
            fields = {**seed, **order.body.get("data", {})}
            fields = {name: str(value) for name, value in fields.items() if name not in STREAMED}
            files = [
                (name, filename, await self._keep(job_id, content, "application/octet-stream"))
                for name, filename, content in uploads(order.body)
            ]
            return Step(**common, fields=fields, files=tuple(files))
        given = read_object(order.body["content"], "application/json").items()
        body = {**seed, **{name: value for name, value in given if name not in STREAMED and value is not None}}
        text = json.dumps(body).encode()
        if len(text) <= MAX_INLINE:
            return Step(**common, body=body)
        return Step(**common, body_file=await self._keep(job_id, text, "application/json"))

    async def _keep(self, job_id: str, content: bytes, media_type: str) -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield content

        if job_id not in self._uploading:  # once: if the note is gone at the end, so may be the files
            self._uploading.add(job_id)
            await self._store.note_upload(job_id, self._foreman.executor)
        return await self.artefacts.put(job_id, pieces(), media_type)

    async def body_of(self, step: Step) -> dict[str, Any]:
        """What a step asks for, without its files.

        Raises:
            GatewayError: the file that it is in cannot be read.
        """
        if step.body_file is not None:
            kept: dict[str, Any] = json.loads(await kept_whole(self.artefacts, step.body_file))
            return kept
        return {**(step.body or {}), **(step.fields or {})}

    # --- what there is ---

    @or_unavailable
    async def get(self, request: Request, job_id: str) -> Job:
        """Find a job of the caller's; an admin's are all.

        Raises:
            NoSuchJob: there is none.
        """
        job = await self._store.get(job_id, visible_to(request))
        if job is None:
            raise NoSuchJob(f"there is no job '{job_id[:64]}'")
        return job

    @or_unavailable
    async def page(self, query: Query, num_rows: int) -> list[Job]:
        """List jobs."""
        return await self._store.page(query, num_rows)

    @or_unavailable
    async def seen(self, job: Job) -> Seen:
        """Look at what is under way of a job, here or at another gateway."""
        if job.has_ended:
            return Seen(job, {})
        if job.executor == NOBODY:
            return Seen(job, {}, num_ahead=await self._store.num_ahead(job))
        live = self._foreman.live.get(job.id)
        shown = live.shown() if live is not None else await self._store.live_at(job.executor, job.id) or {}
        return Seen(job, shown.get("progress") or {}, shown.get("preview"), shown.get("version", 0))

    async def wait(self, request: Request, job: Job, seconds: float) -> Job:
        """Return the job when it has ended, or as it is after so many seconds."""
        ends_at = asyncio.get_running_loop().time() + seconds
        while not job.has_ended and (left := ends_at - asyncio.get_running_loop().time()) > 0:
            await self._change(job, min(left, LOOK_SECONDS))
            job = await self.get(request, job.id)
        return job

    async def follow(self, request: Request, job: Job, after: int) -> AsyncGenerator[Change | Seen]:
        """Yield each change behind the one of that number, once; in between the latest of what is under way."""
        version = 0
        while True:
            live = self._foreman.live.get(job.id)
            changes = await self._store.changes(job, after)
            for change in changes:
                after = change.id
                yield change
            if changes and changes[-1].state in ENDED:
                return  # and may be deleted by now
            found = await self._store.get(job.id, visible_to(request))
            if found is None or found.has_ended:  # or is deleted, and its end was still to be read
                if not await self._store.changes(job, after):
                    return
                continue
            job = found
            if live is None or live.is_over:
                seen = await self.seen(job)
                if seen.version != version:
                    version = seen.version
                    yield seen
                await self._change(job, LOOK_SECONDS)
                continue
            while not live.is_over:  # until then nothing changes but what is to be seen here
                if live.version != version:
                    version = live.version
                    yield Seen(job, live.progress, live.preview, version)
                else:
                    await live.wait(LOOK_SECONDS)

    async def listen(self, request: Request, job: Job) -> AsyncGenerator[tuple[str, bytes]]:
        """Yield media type and pieces of the sound that a job makes, as it is made here or else once it is done.

        Raises:
            NotDone: there is nothing to be heard, and will not be.
            WorkerDied: what was heard so far is not the beginning of what is made now.
        """
        num_heard = 0
        while not job.has_ended:
            live = self._foreman.live.get(job.id)
            while live is not None and not (live.is_over and len(live.sound) == num_heard):
                if len(live.sound) > num_heard:
                    piece = bytes(live.sound[num_heard:])
                    num_heard += len(piece)
                    yield live.sound_type, piece
                else:
                    await live.wait(LOOK_SECONDS)
            job = await self.get(request, job.id)
            if num_heard and not job.has_ended:
                raise WorkerDied("the worker broke off while it spoke; the job begins again")
            if not job.has_ended:
                await self._change(job, LOOK_SECONDS)
                job = await self.get(request, job.id)
        spoken = job.output(None, len(job.steps) - 1)
        if spoken is None:
            raise NotDone(f"the job is {job.state}, and there is nothing to be heard")
        async for piece in await self.artefacts.read(spoken.artefact, range(num_heard, spoken.artefact.num_bytes)):
            yield spoken.artefact.media_type, piece

    async def _change(self, job: Job, seconds: float) -> None:
        live = self._foreman.live.get(job.id)
        if live is None:
            await asyncio.sleep(min(seconds, LOOK_SECONDS / 4))
        else:
            await live.wait(seconds)

    # --- what becomes of it ---

    @or_unavailable
    async def cancel(self, request: Request, job: Job) -> Job:
        """End a job; one that has ended stays as it is. The call of its worker is closed at once."""
        cancelled = await self._store.cancel(job.id, visible_to(request))
        if cancelled is None:
            return await self.get(request, job.id)
        await self._foreman.drop(cancelled)
        return cancelled

    @or_unavailable
    async def retry(self, request: Request, job: Job) -> Job:
        """Begin a job again; it stays the same job.

        Raises:
            NotRetriable: it is under way, or done.
        """
        own = request.scope["request_id"], self._foreman.executor
        again = await self._store.requeue(job, *own, datetime.now(UTC))
        if again is None:
            await self._release(request, len(job.steps))
            raise NotRetriable("only a job that failed or was cancelled can be begun again")
        self._foreman.wake()
        return again

    @or_unavailable
    async def delete(self, request: Request, job: Job) -> None:
        """Cancel a job if need be, and delete it with its files; what it had made by then is paid for.

        Its row stays for a while, hidden: receipts may still come, and who turns pages may go on from it.

        Raises:
            NoSuchJob: somebody else has deleted it meanwhile.
        """
        while await self._store.mark_deleted(job.id, visible_to(request), datetime.now(UTC) + STAYS) is None:
            job = await self.cancel(request, job)  # also where it is begun again meanwhile
        await self.artefacts.delete(job.id)


def visible_to(request: Request) -> str | None:
    """Whose jobs the caller of a request may see; None: all."""
    caller: Caller = request.scope["caller"]
    return None if "admin" in caller.scopes else caller.id


def the_same(known: Job, fingerprint: str) -> Job:
    """Answer with a job that there is already.

    Raises:
        IdempotencyMismatch: it is that of another request.
    """
    if known.fingerprint != fingerprint or known.is_deleted:
        raise IdempotencyMismatch("this Idempotency-Key stands for another request; choose a new one")
    return known


def idempotency_of(request: Request) -> str | None:
    """The caller's key as it is kept, if there is one."""
    caller: Caller = request.scope["caller"]
    key = request.headers.get("idempotency-key", "")
    return hashlib.sha256(f"{caller.id}\0{key}".encode()).hexdigest() if key else None


def fingerprint_of(route: str, orders: Sequence[Order]) -> str:
    """What tells one request from another."""
    digest = hashlib.sha256(route.encode())
    for order in orders:
        digest.update(f"\0{order.path}\0{order.model}\0{order.takes}\0".encode())
        digest.update(order.body.get("content", b""))
        digest.update(json.dumps(sorted(dict(order.body.get("data", {})).items()), default=str).encode())
        for name, _, content in uploads(order.body):
            digest.update(f"\0{name}\0".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def uploads(body: Mapping[str, Any]) -> list[tuple[str, str, bytes]]:
    """The files of a form: field, name and content."""
    files = body.get("files") or ()
    pairs = files.items() if isinstance(files, Mapping) else files
    return [(name, filename, content) for name, (filename, content) in pairs]


def named_in(order: Order) -> str | None:
    """The model that a body names."""
    if "content" in order.body:
        named = read_object(order.body["content"], "application/json").get("model")
        return named if isinstance(named, str) else None
    return dict(order.body.get("data", {})).get("model")


def task_of(path: str) -> Task:
    """Whose route a path is."""
    return TASKS[path]
