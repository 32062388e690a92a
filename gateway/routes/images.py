"""OpenAI's routes for pictures: drawn from a text, or over a picture in a form."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from gateway.admission import begin, defaults_of
from gateway.bodies import checked, read_object
from gateway.catalog import Ours, Target
from gateway.direct import body_of
from gateway.document import NAMED, takes, with_fields
from gateway.errors import CallerLeft
from gateway.pictures import IMAGES, MAX_FILES, File
from gateway.preference import prefers_job
from gateway.routes.chat import MAX_BYTES, admitted
from gateway.routes.generate import refuse_repeated
from gateway.state import State, wired
from services.image.schema import EditRequest, ImageRequest

router = APIRouter(prefix="/v1/images", tags=["images"])

KINDS = ("png", "webp", "jpeg")
CONTRACTS = (ImageRequest, EditRequest)
FORM = "multipart/form-data"
FILES = frozenset({"image", IMAGES, "mask"})
MAX_FIELD_BYTES = 64_000
MAX_JSON_BYTES = 2**30  # with data URLs in it; what the operator allows for uploads is less
FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON, with base64 or (`response_format` url) links; with `stream` events that end with "
        "`[DONE]`; the file alone under an `Accept` of its media type.",
        "content": {"application/json": {}, "text/event-stream": {}} | {f"image/{kind}": {} for kind in KINDS},
    }
}


EDITS = takes(EditRequest, FORM, *FILES)
EDITS["requestBody"]["content"]["application/json"] = {
    "schema": with_fields(EditRequest, {"images": {"type": "array", "items": NAMED}, "mask": NAMED}, "images")
}


@router.post("/generations", responses=FORMS, response_class=Response, openapi_extra=takes(ImageRequest))
async def generations(request: Request) -> Response:
    """Draw pictures."""
    state = wired(request)
    await begin(request, state, "image")
    content = await body_of(request, MAX_BYTES)
    body = read_object(content, request.headers.get("content-type", ""))
    return await draw(request, state, body, ImageRequest, content=content)


@router.post("/edits", responses=FORMS, response_class=Response, openapi_extra=EDITS)
async def edits(request: Request) -> Response:
    """Draw over a picture, or only where a mask says so."""
    state = wired(request)
    await begin(request, state, "image")
    media_type = request.headers.get("content-type", "").lower()
    if media_type.startswith("application/json"):
        fields = read_object(await body_of(request, MAX_JSON_BYTES), media_type)
        files = await state.pictures.files_of(fields)
        fields = {name: value for name, value in fields.items() if value is not None}
        data = {name: text_of(name, value) for name, value in fields.items()}
        return await draw(request, state, fields, EditRequest, files=files, data=data)
    if media_type.startswith(FORM):
        files, data = await read_form(request)
        return await draw(request, state, data, EditRequest, is_form=True, files=files, data=data)
    raise unfit("image", "must be a file; send a multipart form")


async def draw(
    request: Request,
    state: State,
    fields: Mapping[str, Any],
    contract: type[ImageRequest],
    *,
    is_form: bool = False,
    **sent: Any,
) -> Response:
    """Ask whoever serves the model; what our own draw is kept where links are asked for.

    Args:
        request: the caller's, whose body has been read.
        state: of the application.
        fields: the body.
        contract: of it.
        is_form: whether its values are text.
        sent: the same as httpx takes it.
    """
    model = fields.get("model")
    found: Sequence[Target] = state.catalog.serving("image", model if isinstance(model, str) and model else None)
    wants_links = fields.get("response_format") == "url"
    if wants_links:  # others' links are their own
        found = [each for each in found if isinstance(each, Ours) is isinstance(found[0], Ours)]
    targets = await admitted(request, state, "image", found, fields, contract, is_form=is_form)
    if wants_links and isinstance(targets[0], Ours) and not prefers_job(request.scope):
        body = checked(fields, contract, is_form=is_form)
        _, chosen = request.scope["asked"]
        size = body.size or defaults_of(state, "image", chosen).get("size", "auto")
        return await state.keeper.draw(request, targets, body, size, sent)
    accept = request.headers.get("accept", "application/json")
    return await state.relay.send(request, targets, request.scope["path"], accept=accept, **sent)


async def read_form(request: Request) -> tuple[list[File], dict[str, str]]:
    """Return the files under the names that they came by, and the other fields.

    Raises:
        RequestValidationError: a file is text, or a name is given twice.
        HTTPException: the form cannot be read.
        CallerLeft: it ends before its end.
    """
    files: list[File] = []
    fields: list[tuple[str, str]] = []
    try:
        async with request.form(max_files=MAX_FILES, max_part_size=MAX_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if name not in FILES:
                    fields.append((name, value if isinstance(value, str) else ""))  # and is refused by its name
                elif isinstance(value, UploadFile):
                    files.append((name, (name, await value.read())))
                else:
                    raise unfit(name, "must be a file; give the part a filename")
    except ClientDisconnect as error:
        raise CallerLeft("the caller left") from error
    refuse_repeated("body", fields)
    if not any(name.startswith("image") for name, _ in files):
        raise unfit("image", "must be a file; send one to be drawn over")
    return files, dict(fields)


def text_of(name: str, value: object) -> str:
    """A value as a form has it.

    Raises:
        RequestValidationError: a form has none such.
    """
    match value:
        case str():
            return value
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            raise unfit(name, "must be text, a number, true or false")


def unfit(field: str, sentence: str) -> RequestValidationError:
    """What is wrong with a field of the form."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": sentence, "input": None}])
