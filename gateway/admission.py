"""What every generation has to pass before a worker hears of it."""

from fastapi import Request

from gateway.auth import check_scope
from gateway.callers import Caller
from gateway.errors import ModelNotAllowed
from gateway.state import State
from services.registry import Task
from services.schema import GenerationRequest


async def admit(request: Request, state: State, task: Task, body: GenerationRequest, model: str | None = None) -> None:
    """Let the caller of `request` begin, or say why not: scope, model, limits, in this order.

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
        LimitsUnavailable: nobody can say whether it has.
    """
    caller: Caller = request.scope["caller"]
    check_scope(caller, task)
    check_model(caller, body.model or model or state.models[task].id)
    await state.limits.take(caller, request.scope["leases"])


def check_model(caller: Caller, model: str) -> None:
    """Refuse a model that the caller's key does not name.

    Raises:
        ModelNotAllowed: so it is.
    """
    if caller.models is not None and model not in caller.models:
        allowed = ", ".join(sorted(caller.models))
        raise ModelNotAllowed(f"this key may not use the model '{model}'; it may use: {allowed}")
