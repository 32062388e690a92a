"""OpenAI's routes for pictures: drawn from a text, or over a picture in a form."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from gateway.admission import begin
from gateway.errors import CallerLeft
from gateway.routes.chat import admitted, pass_on, takes
from gateway.routes.generate import refuse_repeated
from gateway.state import wired
from services.image.schema import EditRequest, ImageRequest

router = APIRouter(prefix="/v1/images", tags=["images"])

CONTRACTS = (ImageRequest, EditRequest)
FORM = "multipart/form-data"
FILES = frozenset({"image", "image[]", "mask"})  # a client with a list of pictures sends the second
MAX_FILES = 20  # beyond what any client sends: the worker says which are too many
MAX_FIELD_BYTES = 64_000
File = tuple[str, tuple[str, bytes]]
FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON; with `stream` events that end with `[DONE]`; the file alone under `Accept: image/png`.",
        "content": {"application/json": {}, "text/event-stream": {}, "image/png": {}},
    }
}


@router.post("/generations", responses=FORMS, response_class=Response, openapi_extra=takes(ImageRequest))
async def generations(request: Request) -> Response:
    """Draw pictures."""
    return await pass_on(request, "image", ImageRequest)


@router.post("/edits", responses=FORMS, response_class=Response, openapi_extra=takes(EditRequest, FORM, *FILES))
async def edits(request: Request) -> Response:
    """Draw over a picture, or only where a mask says so."""
    state = wired(request)
    await begin(request, state, "image")
    files, fields = await read_form(request)
    found = state.catalog.serving("image", fields.get("model") or None)
    targets = await admitted(request, state, "image", found, fields, EditRequest)
    accept = request.headers.get("accept", "application/json")
    return await state.relay.send(request, targets, request.scope["path"], accept=accept, files=files, data=fields)


async def read_form(request: Request) -> tuple[Sequence[File], dict[str, str]]:
    """Return the files under the names that they came by, and the other fields.

    Raises:
        RequestValidationError: there is no form, a file is text, or a name is given twice.
        HTTPException: the form cannot be read.
        CallerLeft: it ends before its end.
    """
    if not request.headers.get("content-type", "").lower().startswith(FORM):
        raise unfit("image", "must be a file; send a multipart form")
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


def unfit(field: str, sentence: str) -> RequestValidationError:
    """What is wrong with a field of the form."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": sentence, "input": None}])
