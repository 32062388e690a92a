"""Pictures that are answered as links: made while their caller waits, and kept as what a job has made that is done."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import anyio
import httpx
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from gateway.artefacts.store import Artefacts
from gateway.callers import Caller
from gateway.catalog import Target
from gateway.errors import WorkerDied, WorkerUnreachable
from gateway.jobs.calls import ACCEPT, Files, follow
from gateway.jobs.live import Live
from gateway.jobs.schema import Job, Outcome, Step
from gateway.jobs.store import Store
from gateway.relay import Relay
from gateway.signing import MAX_SECONDS, Signer
from gateway.waiting import Patience, departure
from services.image.schema import ImageRequest, described, seed_of, usage
from services.schema import RUN_HEADERS


class Keeper:
    """Makes pictures and keeps them.

    Args:
        store: of the jobs, among which they are listed, deleted and forgotten in time.
        relay: asks the worker.
        artefacts: where the files are.
        signer: of the links.
        retention: how long they stay; None: for ever.
        public_url: what links begin with; empty: the request knows.
        executor: this gateway, as others know it.
    """

    def __init__(
        self,
        store: Store,
        relay: Relay,
        artefacts: Artefacts,
        signer: Signer,
        retention: timedelta | None,
        public_url: str,
        executor: str,
    ) -> None:
        self._store = store
        self._relay = relay
        self._artefacts = artefacts
        self._signer = signer
        self._retention = retention
        self._public_url = public_url
        self._executor = executor

    async def draw(
        self, request: Request, targets: Sequence[Target], body: ImageRequest, size: str, sent: Mapping[str, Any]
    ) -> Response:
        """Answer in the shape of OpenAI's images API, with a link to each picture that is good for an hour.

        Args:
            request: the caller's, who has passed; his leaving ends the work, and nothing is kept then.
            targets: workers.
            body: what is asked for.
            size: of the pictures.
            sent: `content`, or `files` and `data`, as httpx takes them.

        Raises:
            GatewayError: as the relay, or the files cannot be kept.
        """
        job_id = f"job_{token_hex(12)}"
        began = datetime.now(UTC)
        try:
            await self._store.note_upload(job_id, self._executor)
            upstream = await self._relay.open(request, targets, request.scope["path"], accept=ACCEPT, attempt=1, **sent)
            outcome = await self._made(request, upstream, job_id)
            job = await self._store.add(self._row(request, job_id, outcome, began), has_files=True)
        except BaseException:
            with anyio.CancelScope(shield=True):
                if not await self._store.exists(job_id):  # else only the answer was lost
                    await self._artefacts.delete(job_id)
                    await self._store.forget_upload(job_id)
            raise
        document = {
            "created": int(time.time()),
            "data": [self._link(request, job, number) for number in range(len(job.outputs))],
            **described(size, body.output_format),
            "usage": usage({**outcome.usage, "images": len(job.outputs)}),
            "job": job.id,
        }
        known = {name: value for name in RUN_HEADERS if (value := upstream.headers.get(name))}
        return JSONResponse(document, headers=known)

    async def _made(self, request: Request, upstream: httpx.Response, job_id: str) -> Outcome:
        try:
            async with Files(job_id, 0, self._artefacts, "image") as files, Patience() as patience:
                patience.unless(departure(request))
                return await follow(self._relay, upstream, files, Live(), time.monotonic())
        except (httpx.HTTPError, WorkerUnreachable) as error:
            raise WorkerDied("the worker went away while it worked on this") from error
        finally:
            with anyio.CancelScope(shield=True):
                await upstream.aclose()

    def _row(self, request: Request, job_id: str, outcome: Outcome, began: datetime) -> dict[str, Any]:
        """The job that this would have been; of what was asked for it keeps nothing."""
        caller: Caller = request.scope["caller"]
        now = datetime.now(UTC)
        return {
            "id": job_id,
            "caller": caller.id,
            "owner": caller.owner,
            "turn": caller.id,
            "kind": "image",
            "route": request.scope["path"],
            "request_id": request.scope["request_id"],
            "title": "image",
            "steps": [Step("image", request.scope["path"], outcome.model, body={}).row()],
            "task": "image",
            "state": "completed",
            "accepted_by": self._executor,
            "attempt": 1,
            "created_at": began,
            "not_before": began,
            "started_at": began + timedelta(seconds=outcome.queue_seconds),
            "completed_at": now,
            "expires_at": None if self._retention is None else now + self._retention,
            "seed": outcome.seed,
            "model": outcome.model,
            "queue_seconds": outcome.queue_seconds,
            "run_seconds": outcome.run_seconds,
            "usage": outcome.usage,
            "outputs": [each.row() for each in outcome.outputs],
        }

    def _link(self, request: Request, job: Job, number: int) -> dict[str, Any]:
        path = f"/v1/jobs/{job.id}/content?variant={job.outputs[number].variant}"
        signed = self._signer.sign(path, job.caller, MAX_SECONDS)
        base = self._public_url or str(request.base_url).rstrip("/")
        seed = None if job.seed is None else seed_of(job.seed, number)
        return {"url": f"{base}{signed.url}", "seed": seed, "expires_at": signed.expires_at}
