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


def wired(request: Request) -> State:
    """The state of the application that serves `request`."""
    state: State = request.app.state.wired
    return state


async def state_of(request: Request) -> State:
    """The same as a dependency; async, as FastAPI gives a plain function a thread."""
    return wired(request)


StateOf = Annotated[State, Depends(state_of)]
