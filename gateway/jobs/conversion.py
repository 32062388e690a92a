"""A job's file in another format: a worker writes it anew; nothing is generated, and nothing is to be paid."""

import asyncio
from collections.abc import Mapping
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from gateway.artefacts.download import extension_of
from gateway.artefacts.store import Artefacts
from gateway.catalog import Catalog
from gateway.disposition import attachment
from gateway.jobs.calls import kept_whole
from gateway.jobs.errors import NotConvertible
from gateway.jobs.schema import Job, Output
from gateway.provenance.containers import format_of
from gateway.provenance.statement import statement_of
from gateway.relay import Relay
from services.audio import schema as audio
from services.image import schema as image
from services.registry import Task
from services.schema import CONVERSIONS, MAX_CONVERTED, MEDIA_TYPES
from services.video import schema as video

FORMATS: Mapping[Task, tuple[str, ...]] = {
    "image": get_args(image.OutputFormat),
    "audio": get_args(audio.Format),
    "video": get_args(video.Format),
}
BARE = "audio/pcm"  # says neither its rate nor where it comes from


def formats_of(job: Job, output: Output) -> tuple[str, ...]:
    """The words for the formats that a file can be had in; none where it is there in all that there are."""
    task = job.steps[output.step].task
    is_it = output.variant.partition("-")[0] == task and output.artefact.media_type != BARE
    return FORMATS.get(task, ()) if is_it else ()


async def converted(
    request: Request, job: Job, output: Output, form: str, artefacts: Artefacts, catalog: Catalog, relay: Relay
) -> Response:
    """Answer with a file in another format than the one that it is kept in.

    Raises:
        RequestValidationError: it cannot be had in this one.
        NotConvertible: it is too large, or does not say where it comes from.
        GatewayError: the file cannot be read, or no worker is there to write it.
    """
    words = formats_of(job, output)
    if form not in words:
        raise unfit(f"must be one of {', '.join(words)} for this file" if words else "this file has one format alone")
    if output.artefact.num_bytes > MAX_CONVERTED:
        raise NotConvertible(f"a file of more than {MAX_CONVERTED // 10**6} MB is not converted; download it as it is")
    data = await kept_whole(artefacts, output.artefact)
    known = format_of(data)
    said = None if known is None else await asyncio.to_thread(statement_of, data, known)
    if said is None:
        raise NotConvertible("the file does not say where it comes from, and so cannot be written anew")
    media_type = MEDIA_TYPES[form]
    headers = {
        "content-disposition": attachment(job.title or job.id, extension_of(media_type)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    fields: list[tuple[str, Any]] = [
        ("output_format", (None, form.encode())),
        ("provenance", (None, said.model_dump_json().encode())),
        ("file", ("file", data)),
    ]
    targets = catalog.worker(job.steps[output.step].task)
    return await relay.send(
        request, targets, CONVERSIONS, accept=media_type, headers=headers, may_be_a_job=False, files=fields
    )


def unfit(sentence: str) -> RequestValidationError:
    """What is wrong with the format."""
    return RequestValidationError([{"type": "value_error", "loc": ("query", "format"), "msg": sentence, "input": None}])
