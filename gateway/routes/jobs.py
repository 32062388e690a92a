"""`/v1/jobs`: every modality as a durable job, and chains of several."""

import base64
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from gateway.admission import begin, check_offers, pass_ours
from gateway.artefacts.download import Download, download
from gateway.bodies import checked, read_object
from gateway.events import END, Events, event
from gateway.fitting import FILM_OF, NewVideo, film, mesh_model
from gateway.jobs.books import reservation
from gateway.jobs.conversion import converted
from gateway.jobs.desk import Order, Seen, visible_to
from gateway.jobs.errors import NoSuchOutput, NotDone
from gateway.jobs.schema import Change, Job, JobState, Output
from gateway.jobs.store import Query as Listing
from gateway.jobs.views import Deleted, JobPage, JobView
from gateway.pictures import File, is_link
from gateway.preference import applied, seconds_to_wait
from gateway.state import State, StateOf, wired
from gateway.waiting import Patience, departure
from services.audio.schema import SpeechRequest
from services.image.schema import EditRequest, ImageRequest
from services.mesh.schema import MeshRequest
from services.registry import Task
from services.schema import MEDIA_TYPES, Body, GenerationRequest
from services.text.schema import ChatRequest, CompletionRequest, ResponseRequest
from services.video.schema import VideoRequest

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_STEPS = 8


def storable(job_id: str) -> str:
    """Write an id such that every database can be asked for it: Postgres has no NUL in text."""
    return job_id.replace("\0", "\N{REPLACEMENT CHARACTER}")


JobId = Annotated[str, StringConstraints(max_length=64), AfterValidator(storable)]
ROUTES: Mapping[str, tuple[Task, type[GenerationRequest]]] = {
    "/v1/chat/completions": ("text", ChatRequest),
    "/v1/completions": ("text", CompletionRequest),
    "/v1/responses": ("text", ResponseRequest),
    "/v1/audio/speech": ("audio", SpeechRequest),
    "/v1/images/generations": ("image", ImageRequest),
    "/v1/images/edits": ("image", EditRequest),
    "/v1/videos": ("video", NewVideo),
    "/v1/3d/generations": ("mesh", MeshRequest),
}
FORMS = frozenset({"/v1/images/edits", "/v1/videos"})
# What the output of a task is to a route, by the name of the field that takes it.
TAKES: Mapping[tuple[Task, str], str] = {
    ("text", "/v1/audio/speech"): "input",
    ("text", "/v1/images/generations"): "prompt",
    ("text", "/v1/videos"): "prompt",
    ("text", "/v1/3d/generations"): "prompt",
    ("image", "/v1/images/edits"): "image",
    ("image", "/v1/videos"): FILM_OF,
    ("image", "/v1/3d/generations"): "image",
}
FILES = frozenset({("image", "/v1/images/edits"), ("image", "/v1/videos")})
STANDS_FOR_TEXT = "x" * 2000  # the longest that the step before can answer: checked and reserved for
STANDS_FOR_PICTURE = "AAAA"  # in base64


class ChainStep(Body):
    """A call of a route, with what the step before has made in the field that takes it."""

    route: Annotated[str, Field(description="of a worker", examples=["/v1/images/generations"])]
    body: Annotated[
        Mapping[str, Any], Field(description="as that route takes it, without what the step before makes")
    ] = {}


class NewJob(Body):
    """A job of one step or several."""

    steps: Annotated[tuple[ChainStep, ...], Field(min_length=1, max_length=MAX_STEPS)]
    webhook_url: Annotated[str, StringConstraints(max_length=2000, pattern="^https?://")] | None = None


SHAPE = {"required": True, "content": {"application/json": {"schema": NewJob.model_json_schema()}}}


class JobQuery(BaseModel):
    """Which jobs."""

    model_config = ConfigDict(extra="forbid")

    status: JobState | None = None
    kind: Task | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: JobId | None = None
    order: Literal["asc", "desc"] = "desc"


class ContentQuery(BaseModel):
    """Which file."""

    model_config = ConfigDict(extra="forbid")

    variant: Annotated[str, StringConstraints(max_length=64)] | None = None
    step: Annotated[int, Field(ge=1, le=MAX_STEPS, description="of a chain, counted from 1")] | None = None
    format: (
        Annotated[
            str, StringConstraints(max_length=8), Field(description="that it is converted to, such as webp, wav or gif")
        ]
        | None
    ) = None


@router.post("", status_code=202, openapi_extra={"requestBody": SHAPE})
async def create_job(request: Request, state: StateOf) -> Response:
    """Take a job on: `Prefer: wait=30` waits for its end so long."""
    request.scope["is_job"] = True
    content = await request.body()
    body = checked(read_object(content, request.headers.get("content-type", "")), NewJob)
    if body.webhook_url is not None:
        state.guard.check(body.webhook_url, "webhook_url")
    orders = await ordered(request, state, body)
    first = body.steps[0].body
    title = str(first.get("prompt") or first.get("input") or "")
    job = await state.jobs.accept(request, orders, route="/v1/jobs", title=title, hook_url=body.webhook_url)
    return await accepted(request, state, job)


async def ordered(request: Request, state: State, body: NewJob) -> list[Order]:
    """Check all steps before the first begins, and reserve for each."""
    await begin(request, state, task_of(0, body.steps[0]))
    orders: list[Order] = []
    before: Task | None = None
    for number, step in enumerate(body.steps):
        task = task_of(number, step)
        takes = takes_of(number, step, before)
        files, kept = await brought(state, number, step, takes)
        is_file = bool(files) or (takes is not None and (before, step.route) in FILES)
        stands_for = STANDS_FOR_TEXT if before == "text" else STANDS_FOR_PICTURE
        given = {**kept, takes: stands_for} if takes is not None and not is_file else kept
        parsed = checked(given, ROUTES[step.route][1])
        model = parsed.model
        if isinstance(parsed, NewVideo):
            model, fields = film(state, parsed, has_picture=is_file)
            parsed = checked(fields, VideoRequest)
            kept = {name: value for name, value in fields.items() if name != takes}
        elif isinstance(parsed, MeshRequest):
            model = mesh_model(state, parsed)
        state.catalog.serving(task, model)
        check_offers(request, state, task, model, parsed)
        with named(request, number):
            await pass_ours(request, state, task, parsed, model)
        is_form = step.route in FORMS
        content = {"data": kept, "files": files} if is_form else {"content": json.dumps(kept).encode()}
        orders.append(Order(task, step.route, content, model, takes))
        before = task
    return orders


async def brought(
    state: State, number: int, step: ChainStep, takes: str | None
) -> tuple[Sequence[File], dict[str, Any]]:
    """Return the pictures that a step names itself, as files where its route takes a form; and the rest of its body.

    Raises:
        GatewayError: one of them cannot be had.
    """
    given = {name: value for name, value in step.body.items() if value is not None}
    if step.route == "/v1/images/edits":
        if takes is not None and "images" in given:
            raise unfit(number, "images", "is what the step before makes; leave it out")
        return await state.pictures.files_of(given, needs_image=takes is None), given
    if takes is None and FILM_OF in given:
        return [(FILM_OF, ("image", await state.pictures.read(given.pop(FILM_OF), FILM_OF)))], given
    if takes is None and is_link(given.get("image")):
        given["image"] = base64.b64encode(await state.pictures.read(given["image"], "image")).decode()
    return [], given


@contextmanager
def named(request: Request, number: int) -> Iterator[None]:
    """Let a step reserve under a name of its own."""
    own: str = request.scope["request_id"]
    request.scope["request_id"] = reservation(own, number)
    try:
        yield
    finally:
        request.scope["request_id"] = own


def task_of(number: int, step: ChainStep) -> Task:
    """Whose route a step calls."""
    if step.route not in ROUTES:
        raise unfit(number, "route", f"must be one of {', '.join(sorted(ROUTES))}")
    return ROUTES[step.route][0]


def takes_of(number: int, step: ChainStep, before: Task | None) -> str | None:
    """The field that takes what the step before makes; None: there is none before."""
    if before is None:
        return None
    takes = TAKES.get((before, step.route))
    if takes is None:
        raise unfit(number, "route", f"cannot go on from what a step of {before} makes")
    if takes in step.body:
        raise unfit(number, takes, "is what the step before makes; leave it out")
    return takes


def unfit(number: int, field: str, sentence: str) -> RequestValidationError:
    """What is wrong with a step."""
    return RequestValidationError(
        [{"type": "value_error", "loc": ("body", "steps", str(number), field), "msg": sentence, "input": None}]
    )


async def accepted(request: Request, state: State, job: Job) -> Response:
    """Say that a job is taken on, or what has become of it in the time that the caller would wait."""
    job = await state.jobs.wait(request, job, seconds_to_wait(request.scope))
    headers = {"location": f"/v1/jobs/{job.id}", **applied(request.scope)}
    seen = await state.jobs.seen(job)
    return JSONResponse(JobView.of(seen).model_dump(mode="json"), 200 if job.has_ended else 202, headers)


@router.get("")
async def list_jobs(query: Annotated[JobQuery, Query()], request: Request, state: StateOf) -> JobPage:
    """List the caller's jobs, newest first."""
    listing = Listing(visible_to(request), query.status, query.kind, after=query.after, ascending=query.order == "asc")
    jobs, has_more = await page_of(state, listing, query.limit)
    data = [JobView.of(await state.jobs.seen(job)) for job in jobs]
    return JobPage(data=data, has_more=has_more, **ends(jobs))


async def page_of(state: State, listing: Listing, limit: int) -> tuple[list[Job], bool]:
    """Look a page up, and whether there are more."""
    jobs = await state.jobs.page(listing, limit + 1)
    return jobs[:limit], len(jobs) > limit


def ends(jobs: list[Job]) -> dict[str, str | None]:
    """The ids that a page begins and ends with."""
    return {"first_id": jobs[0].id if jobs else None, "last_id": jobs[-1].id if jobs else None}


@router.get("/{job_id}")
async def get_job(job_id: JobId, request: Request, state: StateOf, response: Response) -> JobView:
    """Show a job."""
    seen = await state.jobs.seen(await state.jobs.get(request, job_id))
    response.headers.update(poll_after(seen))
    return JobView.of(seen)


def poll_after(seen: Seen) -> dict[str, str]:
    """When it is worth asking again, as the SDK reads it."""
    if seen.job.has_ended:
        return {}
    eta = seen.eta_seconds
    return {"openai-poll-after-ms": str(round(min(5000, max(250, (eta if eta is not None else 1) * 500))))}


@router.get("/{job_id}/events", response_class=StreamingResponse)
async def follow_job(job_id: JobId, request: Request, state: StateOf) -> Response:
    """Follow a job: each change once (resumable with `Last-Event-ID`), and the latest progress and preview."""
    job = await state.jobs.get(request, job_id)
    last = request.headers.get("last-event-id", "")
    return Events(told(request, state, job, int(last) if last.isdecimal() and len(last) < 19 else 0))


async def told(request: Request, state: State, job: Job, after: int) -> AsyncGenerator[bytes]:
    """Yield events: `status` with a number, `progress` and `preview` without; at the end `[DONE]`."""
    preview: Mapping[str, Any] | None = None
    async for each in state.jobs.follow(request, job, after):
        if isinstance(each, Change):
            fields = {"status": each.state, "step": each.step + 1, "steps": len(job.steps)}
            yield event("status", {"job_id": job.id, **fields, "at": each.at.timestamp()}, each.id)
            continue
        if each.progress:
            yield event("progress", {**each.progress, "progress": each.percent})
        if each.preview is not None and each.preview != preview:
            preview = each.preview
            yield event("preview", dict(preview))
    yield END


@router.head("/{job_id}/content", include_in_schema=False)
@router.get("/{job_id}/content", response_class=Response)
async def get_content(
    job_id: JobId, query: Annotated[ContentQuery, Query()], request: Request, state: StateOf
) -> Response:
    """Download a file of a job; with `Range` a part of it."""
    return await content_of(request, state, await state.jobs.get(request, job_id), query)


@router.get("/{job_id}/sound", response_class=Response, responses={200: {"content": {"audio/mpeg": {}}}})
async def hear_job(job_id: JobId, request: Request, state: StateOf) -> Response:
    """Hear what a job says while it says it, from its beginning; of one that is done, the file."""
    job = await state.jobs.get(request, job_id)
    if job.steps[-1].task != "audio":
        raise NoSuchOutput("this job makes nothing that is to be heard")
    if job.state == "completed":
        return await content_of(request, state, job, ContentQuery(variant="audio"))
    sound = state.jobs.listen(request, job)
    async with Patience() as patience:
        patience.unless(departure(request))
        media_type, first = await anext(sound)
    return Download(joined(first, sound), 200, {"content-type": media_type, "cache-control": "no-store"})


async def joined(first: bytes, others: AsyncGenerator[tuple[str, bytes]]) -> AsyncGenerator[bytes, None]:
    """Yield pieces, the first of which is there already; closes where they come from."""
    async with aclosing(others):
        yield first
        async for _, piece in others:
            yield piece


async def content_of(request: Request, state: State, job: Job, query: ContentQuery) -> Response:
    """Answer with a file.

    Raises:
        NotDone: there is none yet.
        NoSuchOutput: there is no such.
    """
    output = output_of(job, query.variant, query.step)
    kept = state.jobs.artefacts
    if query.format is None or MEDIA_TYPES.get(query.format) == output.artefact.media_type:
        response = await download(request, kept, output.artefact, job.title or job.id)
    else:
        response = await converted(request, job, output, query.format, kept, state.catalog, state.relay)
    if output.step == len(job.steps) - 1 and job.model:  # a job knows no more of the steps before
        response.headers["x-model"] = job.model
        response.headers.update({} if job.seed is None else {"x-seed": str(job.seed)})
    return response


def output_of(job: Job, variant: str | None, step: int | None = None) -> Output:
    """Find a file of a job.

    Raises:
        NotDone: there is none yet.
        NoSuchOutput: there is no such.
    """
    output = job.output(variant, None if step is None else step - 1)
    if output is None and job.state != "completed":
        raise NotDone(f"the job is {job.state}, and has no such file yet")
    if output is None:
        there = ", ".join(dict.fromkeys(each.variant for each in job.outputs))
        raise NoSuchOutput(f"this job has no such file; there are: {there}")
    return output


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: JobId, request: Request, state: StateOf) -> JobView:
    """End a job: the model stops at its next iteration. One that has ended stays as it is."""
    job = await state.jobs.cancel(request, await state.jobs.get(request, job_id))
    return JobView.of(await state.jobs.seen(job))


@router.post("/{job_id}/retry", status_code=202)
async def retry_job(job_id: JobId, request: Request, state: StateOf) -> JobView:
    """Begin a job again that failed or was cancelled; limits and budgets count it as a new request."""
    request.scope["is_job"] = True
    job = await state.jobs.get(request, job_id)
    request.scope["repeats"] = None  # a key is of no use here: to begin again twice is to begin again once
    await begin(request, state, job.steps[0].task)
    for number, step in enumerate(job.steps):
        given = await state.jobs.body_of(step)
        if step.takes is not None and (job.steps[number - 1].task, step.path) not in FILES:
            given[step.takes] = STANDS_FOR_PICTURE if step.takes == "image" else STANDS_FOR_TEXT
        parsed = checked(given, ROUTES[step.path][1], is_form=step.fields is not None)
        with named(request, number):
            await pass_ours(request, state, step.task, parsed, step.model)
    return JobView.of(await state.jobs.seen(await state.jobs.retry(request, job)))


@router.delete("/{job_id}")
async def delete_job(job_id: JobId, request: Request, state: StateOf) -> Deleted:
    """Delete a job with its files; one that is under way is cancelled first."""
    job = await state.jobs.get(request, job_id)
    await state.jobs.delete(request, job)
    return Deleted(id=job.id, object="job.deleted")


def hook_of(request: Request, state: State) -> str | None:
    """The URL that the end of the job is to be told at, from a header, as bodies are OpenAI's."""
    url = request.headers.get("x-webhook-url")
    if url is not None:
        state.guard.check(url, "x-webhook-url")
    return url


async def instead(request: Request, model: str | None, path: str, accept: str, body: Mapping[str, Any]) -> Response:
    """Take on as a job what `Prefer: respond-async` asks for: what the relay would have sent."""
    state = wired(request)
    task = request.scope["asked"][0]
    orders = [Order(task, path, body, model)]
    route = request.scope["path"]
    hook = hook_of(request, state)
    job = await state.jobs.accept(
        request, orders, route=route, title=request.query_params.get("prompt", ""), hook_url=hook
    )
    return await accepted(request, state, job)
