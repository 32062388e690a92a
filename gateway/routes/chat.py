"""OpenAI's routes for text: the body is checked by the worker's own contract, and passed on as it came."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.admission import admit
from gateway.state import State, StateOf
from services.schema import GenerationRequest
from services.text.schema import ChatRequest, CompletionRequest, ResponseRequest

router = APIRouter(prefix="/v1", tags=["text"])
FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON; with `stream` events that end with `[DONE]`; bare text under `Accept: text/plain`.",
        "content": {"application/json": {}, "text/event-stream": {}, "text/plain": {}},
    }
}


@router.post("/chat/completions", responses=FORMS, response_class=Response)
async def chat(body: ChatRequest, request: Request, state: StateOf) -> Response:
    """Continue a chat."""
    return await pass_on(body, request, state)


@router.post("/completions", responses=FORMS, response_class=Response)
async def completions(body: CompletionRequest, request: Request, state: StateOf) -> Response:
    """Continue a text."""
    return await pass_on(body, request, state)


@router.post("/responses", responses=FORMS, response_class=Response)
async def responses(body: ResponseRequest, request: Request, state: StateOf) -> Response:
    """Continue a chat, in items."""
    return await pass_on(body, request, state)


async def pass_on(body: GenerationRequest, request: Request, state: State) -> Response:
    """Ask the text worker."""
    await admit(request, state, "text", body)
    return await state.relay.send(
        request,
        state.catalog.worker("text"),
        request.url.path,
        accept=request.headers.get("accept", "application/json"),
        content=await request.body(),
    )
