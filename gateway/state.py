"""What routes need, as the composition root has wired it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from gateway.catalog import Catalog
from gateway.metrics import Metrics
from gateway.relay import Relay


@dataclass(frozen=True)
class State:
    """One for each application, while it runs."""

    catalog: Catalog
    relay: Relay
    metrics: Metrics


async def state_of(request: Request) -> State:
    """The state of the application that serves `request`; async, as FastAPI gives a plain function a thread."""
    state: State = request.app.state.wired
    return state


StateOf = Annotated[State, Depends(state_of)]
