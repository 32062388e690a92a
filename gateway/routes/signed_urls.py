"""Links to media for those who cannot send a key."""

import re
import time
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints

from gateway.routes.jobs import output_of
from gateway.signing import MAX_SECONDS
from gateway.state import StateOf
from services.schema import Body

router = APIRouter(tags=["signed urls"])

MEDIA = r"^/(generate/[\w/]+|v1/[\w/.-]+/content)(\?|$)"  # the operator's routes are not for browsers' histories
FILE = re.compile("/v1/(jobs|videos|3d)/([^/]+)/content")


class UrlRequest(Body):
    """What is to be signed."""

    path: Annotated[str, StringConstraints(max_length=16_000, pattern=MEDIA), Field(description="with its query")]
    expires_in: Annotated[int, Field(ge=1, le=MAX_SECONDS, description="seconds")] = 300
    direct: Annotated[bool, Field(description="a job's file from the bucket itself, where it is in one")] = False


class UrlAnswer(BaseModel):
    """A link that whoever has it may GET, in the name of who asked for it."""

    url: Annotated[str, Field(description="to be resolved against where the gateway is reached")]
    expires_at: Annotated[int, Field(description="seconds since the epoch")]


@router.post("/v1/signed_urls")
async def sign(body: UrlRequest, request: Request, state: StateOf) -> UrlAnswer:
    """Sign a link to media, for a browser's player, which cannot send a key: it counts as the caller's own request."""
    file = FILE.fullmatch(unquote(urlsplit(body.path).path)) if body.direct else None
    if file is not None:
        job = await state.jobs.get(request, file[2])
        asked = dict(parse_qsl(urlsplit(body.path).query))
        step = asked.get("step", "")
        output = output_of(job, asked.get("variant"), int(step) if step.isdecimal() and len(step) < 4 else None)
        url = await state.jobs.artefacts.presigned(output.artefact, body.expires_in)
        if url is not None and "format" not in asked:  # the bucket has the file as it was made
            return UrlAnswer(url=url, expires_at=int(time.time()) + body.expires_in)
    signed = state.signer.sign(body.path, request.scope["caller"].id, body.expires_in)
    return UrlAnswer(url=signed.url, expires_at=signed.expires_at)
