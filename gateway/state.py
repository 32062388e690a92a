"""What routes need, as the composition root has wired it."""

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


@dataclass(frozen=True)
class State:
    """One for each application, while it runs."""

    catalog: Catalog
    relay: Relay
    provider: Provider
    metrics: Metrics
    drain: Drain
    signer: Signer
    policy: Policy


async def state_of(request: Request) -> State:
    """The state of the application that serves `request`; async, as FastAPI gives a plain function a thread."""
    state: State = request.app.state.wired
    return state


StateOf = Annotated[State, Depends(state_of)]
