"""What routes need, as the composition root has wired it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from gateway.catalog import Catalog
from gateway.drain import Drain
from gateway.metrics import Metrics
from gateway.policy import Policy
from gateway.providers import Provider
from gateway.relay import Relay
from gateway.signing import Signer
from services.schema import Unit

Settle = Callable[[str, int, Mapping[Unit, float]], Awaitable[None]]


@dataclass(frozen=True)
class State:
    """One for each application, while it runs.

    Args:
        internal_token: what workers prove themselves by; empty: none can.
        settle: told of every receipt that comes: request id, attempt, and what was made. A receipt may come twice.
    """

    catalog: Catalog
    relay: Relay
    provider: Provider
    metrics: Metrics
    drain: Drain
    signer: Signer
    policy: Policy
    internal_token: str
    settle: Sequence[Settle]


async def state_of(request: Request) -> State:
    """The state of the application that serves `request`; async, as FastAPI gives a plain function a thread."""
    state: State = request.app.state.wired
    return state


StateOf = Annotated[State, Depends(state_of)]
