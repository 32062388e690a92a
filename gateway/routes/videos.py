"""`/v1/videos`, as the official SDK speaks it, and `/v1/3d` with the same verbs: both are faces of jobs."""

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.datastructures import UploadFile

from gateway.admission import begin, pass_ours
from gateway.bodies import checked, read_object, with_members
from gateway.document import NAMED, takes, with_fields
from gateway.fitting import FILM_OF, NewVideo, film, mesh_model, unfit
from gateway.jobs.desk import Order, visible_to
from gateway.jobs.errors import NoSuchJob
from gateway.jobs.schema import Job
from gateway.jobs.store import Query as Listing
from gateway.jobs.views import Deleted, MediaPage, MediaView
from gateway.pictures import Pictures, is_link
from gateway.preference import applied, seconds_to_wait
from gateway.routes.generate import refuse_repeated
from gateway.routes.jobs import (
    ContentQuery,
    JobId,
    content_of,
    ends,
    hook_of,
    page_of,
    poll_after,
)
from gateway.state import State, StateOf
from services.mesh.schema import MeshRequest
from services.registry import Task
from services.schema import Body
from services.video.schema import VideoRequest

videos = APIRouter(prefix="/v1/videos", tags=["videos"])
meshes = APIRouter(prefix="/v1/3d", tags=["3d"])

CONTRACTS = (MeshRequest,)
VIDEO_ROUTE, MESH_ROUTE = "/v1/videos", "/v1/3d/generations"
FORM = "multipart/form-data"
MAX_FIELD_BYTES = 64_000


class ListQuery(Body):
    """Which page."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: JobId | None = None
    order: Literal["asc", "desc"] = "desc"


FILMS = takes(NewVideo, FORM, FILM_OF)
FILMS["requestBody"]["content"]["application/json"] = {
    "schema": with_fields(NewVideo, {FILM_OF: {"anyOf": [NAMED, NAMED["properties"]["image_url"]]}})
}


@videos.post("", openapi_extra=FILMS, response_model=MediaView)
async def create_video(request: Request, state: StateOf) -> Response:
    """Begin a film: of the picture in `input_reference`, or of what `prompt` says."""
    request.scope["is_job"] = True
    await begin(request, state, "video")
    is_form = request.headers.get("content-type", "").lower().startswith(FORM)
    picture, given = await (read_form(request) if is_form else read_video(request, state.pictures))
    if not given.get("prompt"):
        given.pop("prompt", None)  # the SDK always sends one
    body = checked(given, NewVideo, is_form=is_form)
    model, fields = film(state, body, has_picture=picture is not None)
    await pass_ours(request, state, "video", checked(fields, VideoRequest), model)
    files = {} if picture is None else {FILM_OF: ("image", picture)}
    order = Order("video", VIDEO_ROUTE, {"data": fields, "files": files})
    job = await state.jobs.accept(
        request, [order], route=VIDEO_ROUTE, title=body.prompt or "video", hook_url=hook_of(request, state)
    )
    return await shown(request, state, job)


async def read_video(request: Request, pictures: Pictures) -> tuple[bytes | None, dict[str, Any]]:
    """Return the picture that JSON names, if it names one, and the other fields."""
    given = read_object(await request.body(), request.headers.get("content-type", ""))
    named = given.pop(FILM_OF, None)
    return None if named is None else await pictures.read(named, FILM_OF), given


async def read_form(request: Request) -> tuple[bytes | None, dict[str, Any]]:
    """Return the same of a form."""
    async with request.form(max_part_size=MAX_FIELD_BYTES) as form:
        refuse_repeated("body", form.multi_items())
        picture = form.get(FILM_OF)
        if isinstance(picture, str):
            raise unfit(FILM_OF, "must be a file; give the part a filename")
        fields = {name: value for name, value in form.multi_items() if name != FILM_OF}
        for name, value in fields.items():
            if isinstance(value, UploadFile):
                raise unfit(name, "must be text")
        return None if picture is None else await picture.read(), fields


@meshes.post("/generations", status_code=202, openapi_extra=takes(MeshRequest), response_model=MediaView)
async def create_mesh(request: Request, state: StateOf) -> Response:
    """Begin a mesh: of what `prompt` says, or of the picture in `image` (base64 or a URL)."""
    request.scope["is_job"] = True
    await begin(request, state, "mesh")
    content = await request.body()
    given = read_object(content, request.headers.get("content-type", ""))
    if is_link(given.get("image")):
        given["image"] = base64.b64encode(await state.pictures.read(given["image"], "image")).decode()
        content = with_members(content, {"image": given["image"]})
    body = checked(given, MeshRequest)
    model = mesh_model(state, body)
    await pass_ours(request, state, "mesh", body, model)
    order = Order("mesh", MESH_ROUTE, {"content": content}, model)
    job = await state.jobs.accept(
        request, [order], route=MESH_ROUTE, title=body.prompt or "mesh", hook_url=hook_of(request, state)
    )
    return await shown(request, state, job, status=202)


async def shown(request: Request, state: State, job: Job, status: int = 200) -> Response:
    """Show a job that has just been accepted, after the time that the caller would wait."""
    job = await state.jobs.wait(request, job, seconds_to_wait(request.scope))
    seen = await state.jobs.seen(job)
    headers = {"location": f"/v1/jobs/{job.id}", **applied(request.scope), **poll_after(seen)}
    return JSONResponse(MediaView.of(seen).model_dump(mode="json"), 200 if job.has_ended else status, headers)


async def of_kind(request: Request, state: State, job_id: str, kind: Task) -> Job:
    """Find a job of the caller's that makes this.

    Raises:
        NoSuchJob: there is none.
    """
    job = await state.jobs.get(request, job_id)
    if job.kind != kind:
        raise NoSuchJob(f"there is no {kind} '{job_id[:64]}'")
    return job


async def page(request: Request, state: State, query: ListQuery, kind: Task) -> MediaPage:
    """List jobs that make this."""
    listing = Listing(visible_to(request), kind=kind, after=query.after, ascending=query.order == "asc")
    jobs, has_more = await page_of(state, listing, query.limit)
    data = [MediaView.of(await state.jobs.seen(job)) for job in jobs]
    return MediaPage(data=data, has_more=has_more, **ends(jobs))


async def show(request: Request, response: Response, state: State, job_id: str, kind: Task) -> MediaView:
    """Show one, and when it is worth asking again."""
    seen = await state.jobs.seen(await of_kind(request, state, job_id, kind))
    response.headers.update(poll_after(seen))
    return MediaView.of(seen)


async def delete(request: Request, state: State, job_id: str, kind: Task) -> Job:
    """Delete one with its files."""
    job = await of_kind(request, state, job_id, kind)
    await state.jobs.delete(request, job)
    return job


@videos.get("")
async def list_videos(query: Annotated[ListQuery, Query()], request: Request, state: StateOf) -> MediaPage:
    """List the caller's films, newest first."""
    return await page(request, state, query, "video")


@videos.get("/{video_id}")
async def get_video(video_id: JobId, request: Request, state: StateOf, response: Response) -> MediaView:
    """Show a film's state; `openai-poll-after-ms` says when to ask again."""
    return await show(request, response, state, video_id, "video")


@videos.head("/{video_id}/content", include_in_schema=False)
@videos.get("/{video_id}/content", response_class=Response)
async def get_video_content(
    video_id: JobId, query: Annotated[ContentQuery, Query()], request: Request, state: StateOf
) -> Response:
    """Download a film, its `thumbnail` or its `spritesheet`; with `Range` a part of it."""
    wanted = query if query.variant else query.model_copy(update={"variant": "video"})
    return await content_of(request, state, await of_kind(request, state, video_id, "video"), wanted)


@videos.delete("/{video_id}")
async def delete_video(video_id: JobId, request: Request, state: StateOf) -> Deleted:
    """Delete a film; one that is being made is cancelled."""
    return Deleted(id=(await delete(request, state, video_id, "video")).id, object="video.deleted")


@meshes.get("")
async def list_meshes(query: Annotated[ListQuery, Query()], request: Request, state: StateOf) -> MediaPage:
    """List the caller's meshes, newest first."""
    return await page(request, state, query, "mesh")


@meshes.get("/{mesh_id}")
async def get_mesh(mesh_id: JobId, request: Request, state: StateOf, response: Response) -> MediaView:
    """Show a mesh's state."""
    return await show(request, response, state, mesh_id, "mesh")


@meshes.head("/{mesh_id}/content", include_in_schema=False)
@meshes.get("/{mesh_id}/content", response_class=Response)
async def get_mesh_content(
    mesh_id: JobId, query: Annotated[ContentQuery, Query()], request: Request, state: StateOf
) -> Response:
    """Download a mesh as `glb`, `obj`, `ply` or `points`, or its turning picture, `preview`."""
    return await content_of(request, state, await of_kind(request, state, mesh_id, "mesh"), query)


@meshes.delete("/{mesh_id}")
async def delete_mesh(mesh_id: JobId, request: Request, state: StateOf) -> Deleted:
    """Delete a mesh; one that is being made is cancelled."""
    return Deleted(id=(await delete(request, state, mesh_id, "mesh")).id, object="mesh.deleted")
