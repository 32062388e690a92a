"""Which models may be asked for, here and at providers, and which of them are in memory."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from gateway.auth import only_admins
from gateway.callers import Caller
from gateway.catalog import ModelState, Progress, Seen
from gateway.errors import UnknownModel
from gateway.state import State, StateOf
from services.registry import Adapter, HubSource, Modality, Model, Strategy, Task, first_for, models_of
from services.schema import TOKEN_HEADER

router = APIRouter(prefix="/v1/models", tags=["models"])


class AdapterAnswer(BaseModel):
    """Weights that a request may have added to a model's own, and the terms that they come under."""

    name: str
    licence: str | None = None
    licence_url: str | None = None
    commercial_use: bool | None = None


class ModelAnswer(BaseModel):
    """A model, as OpenAI describes one, and what there is to know besides.

    `created` is when this gateway started. What is null of a provider's model, only the provider knows.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    task: Task
    input_modalities: tuple[Modality, ...] | None = None
    """What it makes something from."""
    strategy: Strategy = "external"
    """When it is in memory; `external`: another worker, or a provider, serves it."""
    state: ModelState
    is_default: bool
    """Whether it is asked where a request for this task names none, and gives what it makes something from."""
    revision: str | None = None
    failure: str | None = None
    """Why it is not in memory, in a sentence."""
    num_bytes: int | None = None
    """Of its weights in memory, as was measured when it was last loaded."""
    progress: Progress | None = None
    """Of one that is loading: `downloading`, with bytes, `building` or `reading`; null while it waits for its turn."""
    num_waiting: int | None = None
    """Requests in its workers' queues now."""
    num_active: int | None = None
    """Requests in progress now."""
    batch_size: int | None = None
    """How many of those shared the latest forward."""
    price: float
    """Of a unit (token, pixel step, second, frame, mesh), as the operator's file has it now; 0 where it names none."""
    licence: str | None = None
    licence_url: str | None = None
    commercial_use: bool | None = None
    defaults: Mapping[str, Any] | None = None
    examples: Sequence[str] = ()
    """Words to try it with."""
    voices: tuple[str, ...] | None = None
    """Null where its checkpoint alone knows them: `GET /v1/audio/voices` asks it."""
    schedulers: tuple[str, ...] | None = None
    """That a request may name; null where it may name none."""
    adapters: Sequence[AdapterAnswer] | None = None
    """What a request's `adapter` may name."""


class ModelList(BaseModel):
    """OpenAI's list."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


@router.get("")
async def models(request: Request, state: StateOf) -> ModelList:
    """List the models that the caller may use."""
    states = await state.catalog.states(get_args(Task))
    return ModelList(data=[answer(each, task, state, states) for task, each in usable(request.scope["caller"], state)])


@router.get("/{model_id:path}")
async def model(model_id: str, request: Request, state: StateOf) -> ModelAnswer:
    """Describe a model; its id may have slashes in it."""
    found = {each: task for task, each in usable(request.scope["caller"], state)}
    if model_id not in found:
        raise UnknownModel(f"model '{model_id[:200]}' is not served here; choose one of: {', '.join(found)}")
    states = await state.catalog.states([found[model_id]])
    return answer(model_id, found[model_id], state, states)


@router.post("/{model_id:path}/load", status_code=202, dependencies=[Depends(only_admins)])
async def load(model_id: str, state: StateOf) -> ModelAnswer:
    """Have the workers load a model, also one that failed; others may leave memory for it. For admins."""
    return await told(model_id, "load", state)


@router.post("/{model_id:path}/unload", status_code=202, dependencies=[Depends(only_admins)])
async def unload(model_id: str, state: StateOf) -> ModelAnswer:
    """Have a model leave the workers' memory once those who wait for it have been served. For admins."""
    return await told(model_id, "unload", state)


async def told(model_id: str, verb: str, state: State) -> ModelAnswer:
    """Tell the workers what to do with a model, and say how it is by now.

    Raises:
        GatewayError: no worker of ours has it, or one says no.
    """
    tasks = {each.id: each.task for each in state.models}
    if model_id not in tasks:
        raise UnknownModel(f"model '{model_id[:200]}' is none of our workers'; choose one of: {', '.join(tasks)}")
    headers = {TOKEN_HEADER: state.internal_tokens[0]} if state.internal_tokens else {}
    await state.catalog.tell(tasks[model_id], model_id, f"/v1/models/{quote(model_id)}/{verb}", headers)
    return answer(model_id, tasks[model_id], state, await state.catalog.states([tasks[model_id]]))


def usable(caller: Caller, state: State) -> Iterator[tuple[Task, str]]:
    """Yield the ids of the models that the caller may use, or at least give keys for."""
    tasks: Collection[Task] = [task for task in get_args(Task) if {task, "admin"} & caller.scopes]
    for task in tasks:
        for each in state.catalog.models(task):
            if caller.models is None or each in caller.models:
                yield task, each


def answer(model_id: str, task: Task, state: State, states: Mapping[str, Seen]) -> ModelAnswer:
    """Say what is known of a model."""
    ours = {each.id: each for each in models_of(task, state.models)}
    price = state.prices.of(task, model_id)
    common: dict[str, Any] = {"id": model_id, "created": state.catalog.created, "task": task, "price": price}
    if model_id not in ours or model_id not in states:
        return ModelAnswer(**common, owned_by="provider", state="external", is_default=False)
    model, others = ours[model_id], ours.values()
    is_default = any(first_for(modality, others) is model for modality in model.input_modalities)
    described = of_ours(model, state)
    seen = states[model_id].model_dump(include=set(Seen.model_fields))
    return ModelAnswer(**common, **described, **seen, is_default=is_default)


def of_ours(model: Model, state: State) -> dict[str, Any]:
    """Say what the registry knows; a tiny checkpoint is nobody's but ours."""
    terms, voices = model.terms, model.voices_in(state.profile)
    owner = terms.repository.partition("/")[0] if isinstance(terms, HubSource) else "local"
    return {
        "owned_by": "atelier" if model.is_tiny_in(state.profile) else owner,
        "input_modalities": model.input_modalities,
        "strategy": model.strategy_in(state.profile),
        "revision": None if model.is_external else model.revision_in(state.profile),
        **terms_of(model),
        "defaults": model.defaults_in(state.profile),
        "examples": model.examples,
        "voices": None if voices is None else tuple(voices),
        "schedulers": model.offered_schedulers,
        "adapters": [{"name": adapter.name, **terms_of(adapter)} for adapter in model.adapters],
    }


def terms_of(owner: Model | Adapter) -> dict[str, Any]:
    """What the registry knows of the terms that weights come under; nothing of those that are built here alone."""
    terms = owner.terms
    return {} if terms is None else terms.model_dump(include={"licence", "licence_url", "commercial_use"})
