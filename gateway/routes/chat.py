"""OpenAI's routes for text: the model decides who is asked, and the body is passed on as it came."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from gateway.bodies import check, read_object
from gateway.catalog import Ours
from gateway.state import State, StateOf
from services.registry import Task
from services.text.schema import ChatRequest, CompletionRequest, ResponseRequest

router = APIRouter(prefix="/v1", tags=["text"])
FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON; with `stream` events that end with `[DONE]`; bare text under `Accept: text/plain`.",
        "content": {"application/json": {}, "text/event-stream": {}, "text/plain": {}},
    }
}


def takes(contract: type[BaseModel]) -> dict[str, Any]:
    """What `/docs` says about the body; `document` in `gateway/app.py` adds the schema."""
    schema = {"$ref": f"#/components/schemas/{contract.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def schemas() -> dict[str, Any]:
    """The contracts, for the OpenAPI document."""
    contracts: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (contract, "validation") for contract in (ChatRequest, CompletionRequest, ResponseRequest)
    ]
    _, schema = models_json_schema(contracts, ref_template="#/components/schemas/{model}")
    definitions: dict[str, Any] = schema["$defs"]
    return definitions


@router.post("/chat/completions", responses=FORMS, response_class=Response, openapi_extra=takes(ChatRequest))
async def chat(request: Request, state: StateOf) -> Response:
    """Continue a chat."""
    return await pass_on(request, state, "text", ChatRequest)


@router.post("/completions", responses=FORMS, response_class=Response, openapi_extra=takes(CompletionRequest))
async def completions(request: Request, state: StateOf) -> Response:
    """Continue a text."""
    return await pass_on(request, state, "text", CompletionRequest)


@router.post("/responses", responses=FORMS, response_class=Response, openapi_extra=takes(ResponseRequest))
async def responses(request: Request, state: StateOf) -> Response:
    """Continue a chat, in items."""
    return await pass_on(request, state, "text", ResponseRequest)


async def pass_on(request: Request, state: State, task: Task, contract: type[BaseModel]) -> Response:
    """Ask whoever serves the model; only our own workers' contract is ours to check."""
    content = await request.body()
    body = read_object(content, request.headers.get("content-type", ""))
    model = body.get("model")
    targets = state.catalog.serving(task, model if isinstance(model, str) and model else None)
    if isinstance(targets[0], Ours):
        check(body, contract)
    accept = request.headers.get("accept", "application/json")
    return await state.relay.send(request, targets, request.url.path, accept=accept, content=content)
