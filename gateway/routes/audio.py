"""OpenAI's route for speech, and which voices it has."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from gateway.admission import check_model
from gateway.auth import check_scope
from gateway.document import takes
from gateway.routes.chat import pass_on
from gateway.state import StateOf
from services.audio.schema import SpeechRequest
from services.registry import models_of

router = APIRouter(prefix="/v1/audio", tags=["audio"])

CONTRACTS = (SpeechRequest,)
KINDS = ("mpeg", "ogg", "aac", "flac", "wav", "pcm")
FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A file, each sentence as it is said; with `stream_format` sse events that end with `[DONE]`.",
        "content": {f"audio/{kind}": {} for kind in KINDS} | {"text/event-stream": {}},
    }
}


@router.post("/speech", responses=FORMS, response_class=Response, openapi_extra=takes(SpeechRequest))
async def speech(request: Request) -> Response:
    """Say a text."""
    return await pass_on(request, "audio", SpeechRequest)


@router.get(
    "/voices",
    responses={200: {"content": {"application/json": {}}}},
    response_class=Response,
)
async def voices(request: Request, state: StateOf, model: Annotated[str, Query(max_length=200)] = "") -> Response:
    """List the voices of a model, or else of the default: as OpenAI lists things, and their bare names in `voices`."""
    caller = request.scope["caller"]
    check_scope(caller, "audio")
    chosen = model or models_of("audio", state.models)[0].id
    check_model(caller, chosen)
    listed = await state.catalog.ask("audio", chosen, "/v1/audio/voices", model=chosen)
    return Response(listed, media_type="application/json")
