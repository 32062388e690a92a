"""What every generation has to pass before a worker hears of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.types import Scope

from gateway.auth import check_scope
from gateway.callers import Caller
from gateway.catalog import Ours, Target
from gateway.errors import ModelNotAllowed
from gateway.preference import prefers_job
from gateway.prompts import Passage, outside_prompts, prompts_of
from gateway.state import State
from services.registry import Task, choices_of, models_of
from services.schema import GenerationRequest
from services.units import UNITS, most, most_outside

Estimate = Callable[[], Iterable[tuple[str, float]]]  # each model that may answer, and the units it can use at most


async def admit(request: Request, state: State, task: Task, body: GenerationRequest, model: str | None = None) -> None:
    """Let the caller of `request` begin, or say why not: scope, limits, model, content, budgets, in this order.

    What is taken here ends with the request: it is entered into its leases.

    Args:
        request: the caller's.
        state: of the application.
        task: what is asked for.
        body: what the worker will be asked for.
        model: that will be used where the body names none; None: the task's default.

    Raises:
        InsufficientScope: the key is not for this task.
        ModelNotAllowed: nor for this model.
        RateLimited: the key has asked for enough for the moment.
        ContentRefused: the operator's policy does not allow the prompt.
        InsufficientQuota: the key has used enough for the day or the month.
        LimitsUnavailable: nobody can say whether it has.
        ModerationUnavailable: likewise of the prompt.
        BudgetsUnavailable: likewise.
    """
    await begin(request, state, task)
    await pass_ours(request, state, task, body, model)


async def begin(request: Request, state: State, task: Task) -> None:
    """The part of `admit` that comes before a body is read: scope and limits.

    Raises:
        GatewayError: as `admit`.
    """
    caller: Caller = request.scope["caller"]
    request.scope["asked"] = task, None
    check_scope(caller, task)
    await state.limits.take(caller, request.scope["leases"])


async def pass_ours(
    request: Request, state: State, task: Task, body: GenerationRequest, model: str | None = None
) -> None:
    """The part of `admit` that comes after it.

    Raises:
        GatewayError: as `admit`.
    """
    chosen = body.model or model or models_of(task, state.models)[0].id

    def estimate() -> Iterator[tuple[str, float]]:
        yield chosen, most(body, defaults_of(state, task, chosen))

    if await is_repetition(request, state):
        check_model(request.scope["caller"], chosen)
    else:
        await _pass(request, state, task, chosen, prompts_of(body), estimate)


async def pass_outside(request: Request, state: State, task: Task, model: str, body: Mapping[str, Any]) -> None:
    """`pass_ours` where a provider is asked, whose contract is its own.

    Raises:
        GatewayError: as `admit`.
    """
    await _pass(request, state, task, model, outside_prompts(body), lambda: [(model, most_outside(task, body))])


async def pass_chain(
    request: Request,
    state: State,
    task: Task,
    targets: Sequence[Target],
    body: Mapping[str, Any],
    ours: GenerationRequest | None,
) -> None:
    """`pass_ours` where some of `targets` are providers: what any of them may read and use counts.

    Args:
        request: the caller's.
        state: of the application.
        task: what is asked for.
        targets: who is asked, one after the other.
        body: as it came.
        ours: as the workers' contract has it; None: none of them is asked.

    Raises:
        GatewayError: as `admit`.
    """
    default = models_of(task, state.models)[0].id

    def estimate() -> Iterator[tuple[str, float]]:
        for target in targets:
            if isinstance(target, Ours) and ours is not None:
                model = target.id or ours.model or default
                yield model, most(ours, defaults_of(state, task, model))
            else:
                yield target.id, most_outside(task, body)

    if isinstance(targets[0], Ours) and await is_repetition(request, state):
        return
    asked_for = targets[0].id or (ours.model if ours is not None else None) or default
    await _pass(request, state, task, asked_for, outside_prompts(body), estimate)


async def is_repetition(request: Request, state: State) -> bool:
    """Whether a request of ours is to become a job, and its key stands for one: that has passed, and is its answer."""
    return prefers_job(request.scope) and await state.jobs.repeated(request) is not None


async def _pass(
    request: Request, state: State, task: Task, model: str, prompts: Sequence[Passage], estimate: Estimate
) -> None:
    caller: Caller = request.scope["caller"]
    request.scope["asked"] = task, model
    check_model(caller, model)
    await state.policy.check(prompts, caller)
    if caller.budgets:
        await reserve(request.scope, state, task, model, estimate)


def defaults_of(state: State, task: Task, model: str) -> Mapping[str, Any]:
    """What a model of ours takes for what a body leaves out."""
    known = models_of(task, state.models)
    return next((each for each in known if each.id == model), known[0]).defaults_in(state.profile)


async def reserve(scope: Scope, state: State, task: Task, model: str, estimate: Estimate) -> None:
    """Reserve the most that the request can use, to be given back at its end where nothing was made."""
    estimates = [(units, units * state.prices.of(task, each)) for each, units in estimate()]
    units, money = (max(numbers) for numbers in zip(*estimates, strict=True))
    price, request_id = state.prices.of(task, model), scope["request_id"]
    seconds = state.jobs.patience if prefers_job(scope) else None
    reserved = await state.budgets.reserve(scope["caller"], request_id, UNITS[task], units, price, money, seconds)
    if reserved is None:
        return

    async def release() -> None:
        if scope.get("nothing_was_made"):
            await state.budgets.release(request_id)

    scope["leases"].push_async_callback(release)
    scope["keep_reserved"] = partial(state.budgets.keep, reserved)


def allowed(caller: Caller, targets: Sequence[Target]) -> tuple[Target, ...]:
    """Leave out those among the fallbacks that the caller's key does not name."""
    first, *others = targets
    return (first, *(other for other in others if caller.models is None or other.id in caller.models))


def check_offers(request: Request, state: State, task: Task, model: str | None, body: GenerationRequest) -> None:
    """Refuse a voice or a scheduler that a model of ours does not have, before anybody waits for it.

    Raises:
        ModelNotAllowed: the key is not for this model.
        RequestValidationError: so it is; the sentence names those that there are.
    """
    known = {each.id: each for each in models_of(task, state.models)}
    asked_for = known.get(body.model or model or next(iter(known)))
    if asked_for is None:
        return
    check_model(request.scope["caller"], asked_for.id)
    if refused := asked_for.refusal_of(state.profile, choices_of(body)):
        error = {"type": "value_error", "loc": ("body", refused[0]), "msg": refused[1], "input": None}
        raise RequestValidationError([error])


def check_model(caller: Caller, model: str) -> None:
    """Refuse a model that the caller's key does not name.

    Raises:
        ModelNotAllowed: so it is.
    """
    if caller.models is not None and model not in caller.models:
        allowed = ", ".join(sorted(caller.models))
        raise ModelNotAllowed(f"this key may not use the model '{model}'; it may use: {allowed}")
