"""OpenAI's route for speech, and which voices it has."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.admission import check_model
from gateway.auth import check_scope
from gateway.routes.chat import DirectRoute, pass_on, takes
from gateway.state import wired
from services.audio.schema import SpeechRequest
from services.registry import models_of

router = APIRouter(prefix="/v1/audio", tags=["audio"], route_class=DirectRoute)

CONTRACTS = (SpeechRequest,)
FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A file, each sentence as it is said; with `stream_format` sse events that end with `[DONE]`.",
        "content": {"audio/mpeg": {}, "audio/wav": {}, "text/event-stream": {}},
    }
}
MODEL_QUERY = {"parameters": [{"name": "model", "in": "query", "schema": {"type": "string"}}]}


@router.post("/speech", responses=FORMS, response_class=Response, openapi_extra=takes(SpeechRequest))
async def speech(request: Request) -> Response:
    """Say a text."""
    return await pass_on(request, "audio", SpeechRequest)


@router.get(
    "/voices",
    responses={200: {"content": {"application/json": {}}}},
    response_class=Response,
    openapi_extra=MODEL_QUERY,
)
async def voices(request: Request) -> Response:
    """List the voices of a model, or else of the default: as OpenAI lists things, and their bare names in `voices`."""
    state, caller = wired(request), request.scope["caller"]
    check_scope(caller, "audio")
    model = request.query_params.get("model") or models_of("audio", state.models)[0].id
    check_model(caller, model)
    return Response(await state.catalog.ask("audio", "/v1/audio/voices", model=model), media_type="application/json")
