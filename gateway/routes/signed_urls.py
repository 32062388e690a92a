"""Links to media for those who cannot send a key."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints

from gateway.signing import MAX_SECONDS
from gateway.state import StateOf
from services.schema import Body

router = APIRouter(tags=["signed urls"])

MEDIA = r"^/(generate/[\w/]+|v1/[\w/.-]+/content)(\?|$)"  # the operator's routes are not for browsers' histories


class UrlRequest(Body):
    """What is to be signed."""

    path: Annotated[str, StringConstraints(max_length=16_000, pattern=MEDIA), Field(description="with its query")]
    expires_in: Annotated[int, Field(ge=1, le=MAX_SECONDS, description="seconds")] = 300


class UrlAnswer(BaseModel):
    """A link that whoever has it may GET, in the name of who asked for it."""

    url: Annotated[str, Field(description="to be resolved against where the gateway is reached")]
    expires_at: Annotated[int, Field(description="seconds since the epoch")]


@router.post("/v1/signed_urls")
async def sign(body: UrlRequest, request: Request, state: StateOf) -> UrlAnswer:
    """Sign a link to media, for a browser's player, which cannot send a key: it counts as the caller's own request."""
    signed = state.signer.sign(body.path, request.scope["caller"].id, body.expires_in)
    return UrlAnswer(url=signed.url, expires_at=signed.expires_at)
