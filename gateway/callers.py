"""Who asks, and what that caller may; knows no HTTP and no database."""

from dataclasses import dataclass
from typing import Literal, get_args

from gateway.usage.content import Kept
from services.registry import Task
from services.units import Unit

Scope = Literal[Task, "admin"]
Period = Literal["day", "month"]
Counted = Unit | Literal["money"]
SCOPES: frozenset[Scope] = frozenset((*get_args(Task), "admin"))


@dataclass(frozen=True)
class Budget:
    """What may be used in each day or month, in UTC."""

    period: Period
    unit: Counted
    limit: float


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Args:
        id: of the key; empty where nobody needs one.
        owner: whose key it is.
        scopes: the modalities that may be asked for, and whether the operator's routes may.
        models: those that may be asked for; None: all.
        requests_per_minute: generations that may be asked for in a minute; None: any number.
        concurrent_streams: generations that may be under way at once; None: any number.
        budgets: none: as much as there is.
        log_content: what the usage log keeps of what is asked and answered; None: what it keeps of everybody's.
    """

    id: str = ""
    owner: str = ""
    scopes: frozenset[Scope] = SCOPES
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    concurrent_streams: int | None = None
    budgets: tuple[Budget, ...] = ()
    log_content: Kept | None = None
