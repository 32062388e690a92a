"""A finished file in another format: read, and written anew with what it says of itself; no model works on it."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import anyio
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.errors import InvalidRequest
from services.provenance import Provenance
from services.responses import rendered
from services.schema import CONVERSIONS, MAX_CONVERTED, MEDIA_TYPES
from services.settings import Settings
from services.uploads import missing, naming_the_field, read_form

FILE_FIELD = "file"
AT_ONCE = anyio.CapacityLimiter(1)  # conversions of a worker: the cores are its model's

# The file, the word for the format, what it is to say of itself, the settings; to the new file.
Convert = Callable[[bytes, Any, Provenance, Settings], bytes]


class Said(BaseModel):
    """What a file says of itself, as the gateway has read it there."""

    model_config = ConfigDict(extra="forbid")

    model: str
    revision: str
    seed: int
    parameters: Mapping[str, Any]


def conversions(formats: Any, convert: Convert) -> Route:
    """The route of a worker that reads and writes `formats`, a `Literal` of words."""
    words: tuple[str, ...] = get_args(formats)

    async def answer(request: Request) -> Response:
        return await rendered(converted(request, words, convert))

    return Route(CONVERSIONS, answer, methods=["POST"])


async def converted(request: Request, words: tuple[str, ...], convert: Convert) -> Response:
    """Read the form and answer it with the file.

    Raises:
        ServiceError: it cannot be converted.
    """
    settings: Settings = request.app.state.worker.settings
    files, fields = await read_form(request, [FILE_FIELD], MAX_CONVERTED)
    if FILE_FIELD not in files:
        raise missing(FILE_FIELD)
    word = fields.get("output_format", "")
    if word not in words:
        raise InvalidRequest(f"output_format: must be one of {', '.join(words)}", param="output_format")
    with naming_the_field():
        said = Provenance(**dict(Said.model_validate_json(fields.get("provenance", ""))))
    try:
        content = await anyio.to_thread.run_sync(convert, files[FILE_FIELD], word, said, settings, limiter=AT_ONCE)
    except ValueError as error:
        raise InvalidRequest("the file cannot be read, and so not be converted", param=FILE_FIELD) from error
    return Response(content, media_type=MEDIA_TYPES[word])
