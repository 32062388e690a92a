"""OpenAI's routes for text: the model decides who is asked, and the body is passed on as it came."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response

from gateway.admission import allowed, begin, check_offers, pass_chain, pass_ours
from gateway.bodies import checked, read_object
from gateway.catalog import Ours, Target
from gateway.direct import DirectRoute, body_of
from gateway.document import takes
from gateway.errors import PayloadTooLarge
from gateway.state import State, wired
from services.registry import Task
from services.schema import GenerationRequest
from services.text.schema import ChatRequest, CompletionRequest, ResponseRequest

router = APIRouter(prefix="/v1", tags=["text"], route_class=DirectRoute)
MAX_BYTES = 10_000_000  # as the worker; reading more would hold up all the others
CONTRACTS = (ChatRequest, CompletionRequest, ResponseRequest)
FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON; with `stream` events that end with `[DONE]`; bare text under `Accept: text/plain`.",
        "content": {"application/json": {}, "text/event-stream": {}, "text/plain": {}},
    }
}


@router.post("/chat/completions", responses=FORMS, response_class=Response, openapi_extra=takes(ChatRequest))
async def chat(request: Request) -> Response:
    """Continue a chat."""
    return await pass_on(request, "text", ChatRequest)


@router.post("/completions", responses=FORMS, response_class=Response, openapi_extra=takes(CompletionRequest))
async def completions(request: Request) -> Response:
    """Continue a text."""
    return await pass_on(request, "text", CompletionRequest)


@router.post("/responses", responses=FORMS, response_class=Response, openapi_extra=takes(ResponseRequest))
async def responses(request: Request) -> Response:
    """Continue a chat, in items."""
    return await pass_on(request, "text", ResponseRequest)


async def pass_on(request: Request, task: Task, contract: type[GenerationRequest]) -> Response:
    """Ask whoever serves the model; only our own workers' contract is ours to check."""
    state = wired(request)
    await begin(request, state, task)
    content = await body_of(request, MAX_BYTES)
    body = read_object(content, request.headers.get("content-type", ""))
    model = body.get("model")
    found = state.catalog.serving(task, model if isinstance(model, str) and model else None)
    targets = await admitted(request, state, task, found, body, contract)
    accept = request.headers.get("accept", "application/json")
    return await state.relay.send(request, targets, request.scope["path"], accept=accept, content=content)


async def admitted(
    request: Request,
    state: State,
    task: Task,
    found: Sequence[Target],
    body: Mapping[str, Any],
    contract: type[GenerationRequest],
    *,
    is_form: bool = False,
) -> Sequence[Target]:
    """Let the body pass, and return who of `found` may be asked.

    Raises:
        GatewayError: as `admit`.
        RequestValidationError: ours is the model that was asked for, and the body is not in its contract.
    """
    targets, ours = fitting(allowed(request.scope["caller"], found), body, contract, is_form=is_form)
    if ours is not None and isinstance(targets[0], Ours):
        check_offers(request, state, task, None, ours)
    if ours is not None and all(isinstance(target, Ours) for target in targets):
        await pass_ours(request, state, task, ours)
    else:
        await pass_chain(request, state, task, targets, body, ours)
    return targets


def fitting(
    targets: Sequence[Target], body: Mapping[str, Any], contract: type[GenerationRequest], *, is_form: bool
) -> tuple[Sequence[Target], GenerationRequest | None]:
    """Leave out our own models among the fallbacks of a body that is not in our contract; the body in it, where it is.

    Raises:
        RequestValidationError: it is not, and ours is the model that was asked for.
    """
    first, *others = targets
    if isinstance(first, Ours):
        return targets, checked(body, contract, is_form=is_form)
    if not any(isinstance(other, Ours) for other in others):
        return targets, None
    try:
        return targets, checked(body, contract, is_form=is_form)
    except (RequestValidationError, PayloadTooLarge):
        return [target for target in targets if not isinstance(target, Ours)], None
