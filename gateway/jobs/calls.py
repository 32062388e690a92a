"""One call of a worker for a job: its events in, files out; knows no media format and no table."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
from starlette.requests import Request
from starlette.types import Message

from gateway.artefacts.store import Artefact, Artefacts
from gateway.callers import Caller
from gateway.catalog import Catalog, Ours
from gateway.errors import GatewayError, UnknownModel, WorkerDied, WorkerRefused, WorkerUnreachable
from gateway.jobs.books import CALLS
from gateway.jobs.live import Live
from gateway.jobs.schema import Job, Outcome, Output, Step
from gateway.relay import Relay
from services.schema import UNITS

ACCEPT = "text/event-stream; final=1"
AHEAD = 4  # pieces of a file that wait for the disk
NAMES = {"text": "answer", "audio": "audio", "image": "image", "video": "video", "mesh": "obj"}  # where none is said
BUSY = frozenset({429, 503})


async def call(
    job: Job, step: Step, model: str | None, body: Mapping[str, Any], relay: Relay, catalog: Catalog,
    artefacts: Artefacts, live: Live, patience: float,
) -> Outcome:  # fmt: skip
    """Ask a worker, keep what comes, and say what that was. Cancelled, it closes the call.

    Raises:
        UnknownModel: no worker has the model that the body names.
        GatewayError: nothing came of it, by whose fault it says; files that were whole stay.
    """
    targets = [
        target for target in catalog.serving(step.task, model) if isinstance(target, Ours)
    ]  # of events, providers know nothing
    if not targets:
        raise UnknownModel(f"model '{model}' is a provider's, and jobs are made by our own workers alone")
    async with AsyncExitStack() as leases:
        request = stand_in(job, leases, patience)
        began = time.monotonic()
        upstream = await relay.open(request, targets, step.path, accept=ACCEPT, attempt=job.attempt, **body)
        try:
            async with Files(job.id, job.step, artefacts, NAMES[step.task]) as files:
                return await follow(relay, upstream, files, live, began)
        except httpx.HTTPError as error:
            raise WorkerDied("the worker went away while it worked on this") from error
        except WorkerUnreachable as error:
            raise WorkerDied("the worker stopped answering while it worked on this") from error
        finally:
            with anyio.CancelScope(shield=True):
                await upstream.aclose()


def stand_in(job: Job, leases: AsyncExitStack, patience: float) -> Request:
    """The request of a caller who is not there any more, and so never leaves."""

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return] # never

    scope = {
        "type": "http",
        "leases": leases,
        "caller": Caller(id=job.turn),
        "request_id": f"{CALLS}{job.id}",
        "client": None,
        "headers": [],
        "patience": patience,
    }
    return Request(scope, receive)


async def follow(relay: Relay, upstream: httpx.Response, files: "Files", live: Live, began: float) -> Outcome:
    """Read the events to their end.

    Raises:
        WorkerRefused: one of them is an error.
        WorkerDied: the stream ends before it should.
    """
    started = began
    seed = upstream.headers.get("x-seed", "")
    async with relay.watched(upstream):
        async for name, data in events(upstream.aiter_raw()):
            match name:
                case "queued":
                    live.progress = {"position": data.get("position")}
                case "started":
                    started = time.monotonic()
                    live.progress = {}
                case "progress":
                    live.progress = data
                case "preview":
                    live.preview = data
                case "output":
                    await files.add(data)
                case "error":
                    raise refused(data)
                case "done":
                    kept = await files.close()
                    return Outcome(
                        outputs=kept,
                        usage=units_of(data.get("usage", {})),
                        seed=int(seed) if seed.isdecimal() else None,
                        model=upstream.headers.get("x-model", ""),
                        queue_seconds=started - began,
                        run_seconds=time.monotonic() - started,
                    )
                case _ if "sha256" in data:
                    files.expect(data)
            live.tell()
    raise WorkerDied("the worker broke off while it worked on this")


async def events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield name and data of server-sent events; half of one at the end is none."""
    buffer = bytearray()
    looked = 0
    async for piece in pieces:
        buffer += piece
        while (end := buffer.find(b"\n\n", max(looked - 1, 0))) >= 0:
            fields = dict(line.split(b": ", 1) for line in bytes(buffer[:end]).split(b"\n") if b": " in line)
            del buffer[: end + 2]
            looked = 0
            data = fields.get(b"data", b"")
            if data.startswith(b"{"):
                yield fields.get(b"event", b"message").decode(), json.loads(data)
        looked = len(buffer)


class Files:
    """The files of one answer, kept while they come: each by a task of its own, as they may come in turns."""

    def __init__(self, job_id: str, step: int, artefacts: Artefacts, name: str) -> None:
        """Keep for a job what comes of its `step`; what has no name is called `name`."""
        self._job_id = job_id
        self._step = step
        self._artefacts = artefacts
        self._name = name
        self._writers: dict[str, Writer] = {}

    async def __aenter__(self) -> "Files":
        """Begin."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Keep nothing of what is not whole."""
        for writer in self._writers.values():
            writer.task.cancel()
        if self._writers:
            await asyncio.wait([writer.task for writer in self._writers.values()])

    async def add(self, data: Mapping[str, Any]) -> None:
        """Take a piece of a file.

        Raises:
            GatewayError: the files before cannot be kept.
        """
        name = data.get("variant") or self._name
        if name not in self._writers:
            self._writers[name] = Writer(self._artefacts, self._job_id, data["media_type"])
        if data.get("b64"):
            await self._writers[name].add(base64.b64decode(data["b64"]))
        if "sha256" in data:
            self.expect(data)

    def expect(self, data: Mapping[str, Any]) -> None:
        """Take the worker's word for what a file comes to."""
        name = data.get("variant") or self._name
        if name in self._writers:
            self._writers[name].sha256 = data["sha256"]

    async def close(self) -> tuple[Output, ...]:
        """Wait until all are kept.

        Raises:
            GatewayError: one cannot be.
            WorkerDied: one is not what the worker sent.
        """
        return tuple([Output(name, self._step, await writer.close()) for name, writer in self._writers.items()])


class Writer:
    """Writes one file."""

    def __init__(self, artefacts: Artefacts, job_id: str, media_type: str) -> None:
        """Begin."""
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)
        self.sha256 = ""
        self.task = asyncio.create_task(artefacts.put(job_id, self._pieces(), media_type))

    async def add(self, piece: bytes | None) -> None:
        """Take a piece, as soon as there is room; None: there are no more.

        Raises:
            GatewayError: the file cannot be kept.
        """
        putting = asyncio.ensure_future(self._queue.put(piece))
        try:
            await asyncio.wait({putting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            if not putting.done():
                self.task.result()
        finally:
            putting.cancel()

    async def close(self) -> Artefact:
        """Wait until it is kept."""
        await self.add(None)
        artefact = await asyncio.shield(self.task)
        if self.sha256 not in ("", artefact.sha256):
            raise WorkerDied("a file came otherwise than the worker had sent it")
        return artefact

    async def _pieces(self) -> AsyncGenerator[bytes]:
        while (piece := await self._queue.get()) is not None:
            yield piece


async def kept_whole(artefacts: Artefacts, artefact: Artefact) -> bytes:
    """Read a file.

    Raises:
        GatewayError: it is not there, or not what it was.
    """
    content = b"".join([piece async for piece in await artefacts.read(artefact, range(artefact.num_bytes))])
    if hashlib.sha256(content).hexdigest() != artefact.sha256:
        raise GatewayError("a file of this job is damaged")
    return content


def refused(error: Mapping[str, Any]) -> WorkerRefused:
    """What a worker says midway."""
    status = int(error.get("status", 500))
    is_busy = status in BUSY
    return WorkerRefused(
        status, str(error.get("message")), error.get("code") or "worker_error", error.get("param"), is_busy, None
    )


def units_of(made: Mapping[str, float]) -> dict[str, float]:
    """Choose what is paid for."""
    counted: dict[str, float] = {unit: made[unit] for unit in UNITS if made.get(unit)}
    tokens = made.get("prompt_tokens", 0) + made.get("completion_tokens", 0)
    return {"tokens": tokens, **counted} if tokens else counted
