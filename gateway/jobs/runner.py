"""Runs one attempt at a job's step: the call, the books, and what becomes of the job then."""

import asyncio
import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from gateway.artefacts.store import Artefacts
from gateway.callers import Caller
from gateway.catalog import Catalog
from gateway.errors import ArtefactsUnavailable, GatewayError, WorkerDied
from gateway.jobs.books import receipt_of
from gateway.jobs.calls import call, kept_whole
from gateway.jobs.live import Live
from gateway.jobs.schema import Job, Outcome, Step
from gateway.jobs.store import AWAY, Store
from gateway.policy import Policy
from gateway.prompts import Passage
from gateway.relay import Relay
from services.schema import check_is_text, envelope

T = TypeVar("T")

logger = logging.getLogger("atelier.jobs")

MAX_BREAKS = 5  # calls of one step that a worker did not survive, and the job is given up
PAUSE = timedelta(seconds=1)  # before a step is tried again
DATABASE_SECONDS = 0.5  # before a database that is away is asked again
MAX_PROMPT = 2000  # characters; as the contracts have it
UNTYPED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\N{REPLACEMENT CHARACTER}]+")


class EmptyText(GatewayError):
    """The next step of a chain has nothing to begin with."""

    status, code = 400, "empty_text"


class TookTooLong(GatewayError):
    """Nobody could serve the job as long as it was to be waited for."""

    status, code = 504, "job_expired"


class Runner:
    """Runs attempts."""

    def __init__(
        self,
        store: Store,
        relay: Relay,
        catalog: Catalog,
        artefacts: Artefacts,
        policy: Policy,
        patience: float,
    ) -> None:
        """Work for jobs that are at most `patience` seconds old."""
        self._store = store
        self._relay = relay
        self._catalog = catalog
        self._artefacts = artefacts
        self._policy = policy
        self._patience = patience

    async def run(self, job: Job, live: Live) -> None:
        """Work on the step that `job` is at.

        Cancelled, it closes the call of the worker at once, and leaves the job as it is.
        """
        left = (job.created_at - datetime.now(UTC)).total_seconds() + self._patience
        try:
            if left <= 0:
                raise TookTooLong("the job was not done in the time that it had")
            model, body = await self._body(job)
            outcome = await call(
                job, job.steps[job.step], model, body, self._relay, self._catalog, self._artefacts, live, left
            )
        except GatewayError as error:
            await self._after(job, error)
        except AWAY:
            logger.exception("job %s: attempt %d has to wait", job.id, job.attempt)
            await until_it_answers(lambda: self._again(job, job.breaks))
        except Exception:
            logger.exception("job %s failed", job.id)
            await self._after(job, GatewayError("the gateway failed; its log says why"))
        else:
            await until_it_answers(lambda: self._done(job, outcome))

    async def _after(self, job: Job, error: GatewayError) -> None:
        """Try again what may yet succeed, or give up."""
        is_broken = isinstance(error, WorkerDied | ArtefactsUnavailable)
        breaks = job.breaks + is_broken
        if breaks < MAX_BREAKS and (is_broken or error.should_retry):
            await until_it_answers(lambda: self._again(job, breaks))
        else:
            await until_it_answers(lambda: self._fail(job, error))

    async def _again(self, job: Job, breaks: int) -> None:
        pause = PAUSE * (1 + breaks)
        await self._store.put_back(job, datetime.now(UTC) + pause, breaks=breaks)

    async def _fail(self, job: Job, error: GatewayError) -> None:
        said = envelope(error.status, str(error), error.code, error.param)
        await self._store.fail(job, said.error.model_dump())

    async def _done(self, job: Job, outcome: Outcome) -> None:
        is_done = await self._store.step_done(job, outcome, receipt_of(job, outcome))
        if not is_done and not await self._store.exists(job.id):
            await self._artefacts.delete(job.id)  # it was deleted while we were away

    async def _body(self, job: Job) -> tuple[str | None, dict[str, Any]]:
        """Make what the worker is sent, as httpx takes it, and say which model that names."""
        step = job.steps[job.step]
        fields: dict[str, Any] = dict(step.fields or {})
        files = [
            (name, (filename, await kept_whole(self._artefacts, artefact))) for name, filename, artefact in step.files
        ]
        body: dict[str, Any] = dict(step.body or {})
        if step.body_file is not None:
            body = json.loads(await kept_whole(self._artefacts, step.body_file))
        if step.takes is not None and job.step:
            content, media_type = await self._output_before(job)
            if media_type == "application/json":
                text = await self._prompt(job, content)
                (body if step.fields is None else fields)[step.takes] = text
            elif step.fields is not None:
                files.append((step.takes, (step.takes, content)))
            else:
                body[step.takes] = base64.b64encode(content).decode()
        if step.fields is not None:
            named = with_model(fields, step)
            plain = [(name, (None, str(value).encode())) for name, value in named.items()]
            return named.get("model"), {"files": [*plain, *files]}  # as a multipart form, also where there is no file
        named = with_model(body, step)
        return named.get("model"), {"content": json.dumps(named).encode()}

    async def _output_before(self, job: Job) -> tuple[bytes, str]:
        before = [each for each in job.outputs if each.step == job.step - 1]
        if not before:
            raise GatewayError("the step before left no file")
        return await kept_whole(self._artefacts, before[0].artefact), before[0].artefact.media_type

    async def _prompt(self, job: Job, answer: bytes) -> str:
        """Make a prompt of a chat's answer; it has to pass the operator's policy as any other."""
        text = UNTYPED.sub(" ", text_of(json.loads(answer)))[:MAX_PROMPT].strip()
        try:
            check_is_text(text)
        except ValueError as error:
            raise EmptyText("the text step answered nothing that the next step could begin with") from error
        await self._policy.check([Passage((text,))], Caller(id=job.caller))
        return text


def with_model(body: Mapping[str, Any], step: Step) -> dict[str, Any]:
    """Name the model that is asked, where the caller's own words name another."""
    return {**body, "model": step.model} if step.model else dict(body)


def text_of(answer: Mapping[str, Any]) -> str:
    """The text of a chat's, a completion's or a response's answer."""
    if "output" in answer:
        parts = (part for item in answer["output"] for part in item.get("content") or ())
        return "".join(part.get("text", "") for part in parts)
    choice = answer["choices"][0]
    return str(choice["message"]["content"] or "" if "message" in choice else choice["text"])


async def until_it_answers(move: Callable[[], Awaitable[T]]) -> T:
    """Make a move in the database, however long that is away; the moves are such that a second time changes nothing."""
    while True:
        try:
            return await move()
        except AWAY as error:
            logger.warning("jobs: the database has to be asked again: %s", type(error).__name__)
        await asyncio.sleep(DATABASE_SECONDS)
