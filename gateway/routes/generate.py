"""The book's routes: a prompt in the query, the bare media out. Each translates to a worker's own `/v1/…` route."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import BeforeValidator, Field, StringConstraints

from gateway.admission import admit, begin, pass_ours, pass_outside
from gateway.auth import check_scope
from gateway.disposition import attachment
from gateway.fitting import mesh_model, model_for
from gateway.providers import text_of
from gateway.state import State, StateOf
from services.audio.schema import Input, SpeechRequest, Voice
from services.image.schema import ImageRequest
from services.mesh.schema import MeshRequest, MeshSteps
from services.registry import Task
from services.schema import AdapterName, Body, GenerationRequest, Prompt, Seed, Size, Steps
from services.text.schema import ChatRequest, Content, Message, Temperature
from services.video.schema import NumFrames, VideoRequest

TASKS: dict[str, Task] = {"text": "text", "audio": "audio", "image": "image", "3d": "mesh"}
MEDIA_TYPES = {"text": "text/plain", "audio": "audio/wav", "image": "image/png", "mesh": "model/obj"}


def refuse_repeated(source: str, items: Iterable[tuple[str, object]]) -> None:
    """Refuse a name that is given twice: which one counts would be a guess."""
    for name, count in Counter(name for name, _ in items).items():
        if count > 1:
            error = {"type": "repeated", "loc": (source, name), "msg": "must be given once only", "input": None}
            raise RequestValidationError([error])


async def check_query(request: Request) -> None:
    """Refuse repeated names in the query."""
    refuse_repeated("query", request.query_params.multi_items())


async def check_form(request: Request) -> None:
    """Refuse repeated names in the form, and so a second file."""
    refuse_repeated("body", (await request.form()).multi_items())


router = APIRouter(prefix="/generate", tags=["generate"], dependencies=[Depends(check_query)])


def media(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """What `/docs` says about an answer that is a file."""
    schema = {"type": "string"} if media_type.startswith("text/") else {"type": "string", "format": "binary"}
    return {200: {"description": description, "content": {media_type: {"schema": schema}}}}


Question = Annotated[Content, StringConstraints(max_length=32_000)]  # more than that, no URL has room for


class TextQuery(Body):
    """What `GET /generate/text` takes."""

    prompt: Question
    temperature: Temperature | None = None
    seed: Seed | None = None
    adapter: AdapterName | None = None


class AudioQuery(Body):
    """What `GET /generate/audio` takes."""

    prompt: Input
    preset: Annotated[Voice, Field(description="one of the checkpoint's own voices")] | None = None
    seed: Seed | None = None


class ImageQuery(Body):
    """What `GET /generate/image` takes."""

    prompt: Prompt
    size: Size | None = None
    num_inference_steps: Steps | None = None
    seed: Seed | None = None
    adapter: AdapterName | None = None


class MeshQuery(Body):
    """What `GET /generate/3d` takes."""

    prompt: Prompt
    num_inference_steps: MeshSteps | None = None
    seed: Seed | None = None


class PromptQuery(Body):
    """A prompt and nothing else."""

    prompt: Question


class NoQuery(Body):
    """No query at all."""


def check_is_file(value: object) -> object:
    """Refuse a field that is text, in the caller's words rather than the library's."""
    if isinstance(value, str):
        raise ValueError("must be a file; give the part a filename")
    return value


class VideoForm(Body):
    """The form of `POST /generate/video`."""

    image: Annotated[UploadFile, BeforeValidator(check_is_file), File(description="PNG, JPEG, WebP, GIF or BMP")]
    num_frames: Annotated[NumFrames | None, Field(description="by default as many as the model makes")] = None
    seed: Seed | None = None


@router.head("/{kind}", include_in_schema=False)
@router.head("/bentoml/{kind}", include_in_schema=False)
async def about(kind: Literal["text", "audio", "image", "3d"], request: Request, state: StateOf) -> Response:
    """Say what a `GET` would answer with, and generate nothing: players ask before they play."""
    task = TASKS[kind]
    check_scope(request.scope["caller"], task)
    state.catalog.worker(task)
    return Response(media_type=MEDIA_TYPES[task])


@router.get("/text", responses=media("text/plain", "The answer, as it is made."), response_class=Response)
async def text(query: Annotated[TextQuery, Query()], request: Request, state: StateOf) -> Response:
    """Answer a prompt with the chat model."""
    message = Message(role="user", content=query.prompt)
    body = ChatRequest(messages=(message,), temperature=query.temperature, seed=query.seed, adapter=query.adapter)
    await admit(request, state, "text", body)
    worker = state.catalog.worker("text")
    path = "/v1/chat/completions"
    renamed = {"messages": "prompt"}
    return await state.relay.send(request, worker, path, accept="text/plain", content=wire(body), renamed=renamed)


@router.get("/audio", responses=media("audio/wav", "Speech, each sentence as it is said."), response_class=Response)
async def audio(query: Annotated[AudioQuery, Query()], request: Request, state: StateOf) -> Response:
    """Say a text."""
    body = SpeechRequest(input=query.prompt, voice=query.preset, seed=query.seed, response_format="wav")
    renamed = {"input": "prompt", "voice": "preset"}
    await admit(request, state, "audio", body, renamed)
    worker = state.catalog.worker("audio")
    path = "/v1/audio/speech"
    return await state.relay.send(request, worker, path, accept="audio/wav", content=wire(body), renamed=renamed)


@router.get("/image", responses=media("image/png", "A picture."), response_class=Response)
async def image(query: Annotated[ImageQuery, Query()], request: Request, state: StateOf) -> Response:
    """Draw a picture."""
    return await draw(query, request, state)


@router.get("/bentoml/image", responses=media("image/png", "A picture."), response_class=Response)
async def bentoml_image(query: Annotated[ImageQuery, Query()], request: Request, state: StateOf) -> Response:
    """Draw a picture: the book's name for the image worker as an outside server."""
    return await draw(query, request, state)


async def draw(query: ImageQuery, request: Request, state: State) -> Response:
    """Ask the image worker."""
    body = ImageRequest.model_validate(query.model_dump())
    await admit(request, state, "image", body)
    worker = state.catalog.worker("image")
    path = "/v1/images/generations"
    return await state.relay.send(request, worker, path, accept="image/png", content=wire(body))


@router.post(
    "/video",
    responses=media("video/mp4", "A film, frames as they are decoded."),
    response_class=Response,
    dependencies=[Depends(check_form)],
)
async def video(
    query: Annotated[NoQuery, Query()],
    form: Annotated[VideoForm, Form(media_type="multipart/form-data")],
    request: Request,
    state: StateOf,
) -> Response:
    """Make a film that starts with a picture."""
    body = VideoRequest(num_frames=form.num_frames, seed=form.seed)
    await begin(request, state, "video")
    model = model_for(state, "video", None, "image", "image").id
    await pass_ours(request, state, "video", body, model)
    return await state.relay.send(
        request,
        state.catalog.worker("video", model),
        "/v1/videos",
        accept="video/mp4",
        files={"input_reference": ("image", await form.image.read())},
        data={name: str(value) for name, value in body.model_dump(exclude_none=True).items()},
        renamed={"input_reference": "image"},
    )


@router.get("/3d", responses=media("model/obj", "A coloured mesh, as a file to save."), response_class=Response)
async def mesh(query: Annotated[MeshQuery, Query()], request: Request, state: StateOf) -> Response:
    """Make a mesh."""
    body = MeshRequest.model_validate(query.model_dump())
    await begin(request, state, "mesh")
    model = mesh_model(state, body)
    await pass_ours(request, state, "mesh", body, model)
    worker = state.catalog.worker("mesh", model)
    path = "/v1/3d/generations"
    headers = {"content-disposition": attachment(query.prompt, "obj")}
    return await state.relay.send(request, worker, path, accept="model/obj", content=wire(body), headers=headers)


@router.get("/openai/text", responses=media("text/plain", "The answer."), response_class=Response)
async def openai_text(query: Annotated[PromptQuery, Query()], request: Request, state: StateOf) -> PlainTextResponse:
    """Answer a prompt with the configured OpenAI-compatible provider."""
    body = {"model": "", "messages": [{"role": "user", "content": query.prompt}]}
    await begin(request, state, "text")
    await pass_outside(request, state, "text", state.catalog.outside_model, body)
    content = json.dumps(body).encode()
    answer = await state.relay.read(request, state.catalog.outside(), "/v1/chat/completions", content=content)
    return PlainTextResponse(text_of(answer))


def wire(body: GenerationRequest) -> bytes:
    """The JSON that a worker takes."""
    return body.model_dump_json(exclude_none=True).encode()
