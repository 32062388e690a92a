"""What routes need, as the composition root has wired it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from gateway.auth import Door
from gateway.budgets.budgets import Budgets
from gateway.budgets.prices import Prices
from gateway.catalog import Catalog
from gateway.drain import Drain
from gateway.jobs.books import Books
from gateway.jobs.desk import Desk
from gateway.jobs.webhooks import Webhooks
from gateway.keeping import Keeper
from gateway.keys.keyring import Keyring
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.outside import Guard
from gateway.pictures import Pictures
from gateway.policy import Policy
from gateway.receipts import Receipts
from gateway.relay import Relay
from gateway.signing import Signer
from services.registry import Model, Profile


@dataclass(frozen=True)
class State:
    """One for each application, while it runs.

    Args:
        internal_tokens: what workers prove themselves by, any of them, and we to them by the first; none: nobody can.
    """

    catalog: Catalog
    relay: Relay
    metrics: Metrics
    drain: Drain
    signer: Signer
    policy: Policy
    internal_tokens: tuple[str, ...]
    keyring: Keyring
    door: Door
    limits: Limits
    budgets: Budgets
    receipts: Receipts
    prices: Prices
    webhooks: Webhooks
    guard: Guard
    models: tuple[Model, ...]
    profile: Profile
    jobs: Desk
    books: Books
    keeper: Keeper
    pictures: Pictures


def wired(request: Request) -> State:
    """The state of the application that serves `request`."""
    state: State = request.app.state.wired
    return state


async def state_of(request: Request) -> State:
    """The same as a dependency; async, as FastAPI gives a plain function a thread."""
    return wired(request)


StateOf = Annotated[State, Depends(state_of)]
