"""`/v1/keys`: who may call; for admins alone."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, get_args

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from gateway.auth import only_admins
from gateway.callers import Budget, Counted, Period, Scope
from gateway.keys.schema import ID, Grant, Key
from gateway.routes.usage import Instant
from gateway.state import StateOf
from gateway.usage.content import Kept
from services.registry import Task
from services.schema import Body, ModelId, check_is_text

PAGE_KEYS = 100
TASKS: tuple[Scope, ...] = get_args(Task)
MAX_LIMIT = 1e12  # of a budget; in millionths it is what a database adds up exactly
Limit = Annotated[int, Field(ge=1, le=1_000_000)]

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[Depends(only_admins)])
budgets = APIRouter(tags=["keys"])


def check_is_to_come(instant: datetime) -> datetime:
    """Refuse an end that has been."""
    if instant <= datetime.now(UTC):
        raise ValueError("must lie in the future")
    return instant


Owner = Annotated[
    str, StringConstraints(min_length=1, max_length=200), AfterValidator(check_is_text), Field(description="whose")
]
Scopes = Annotated[
    frozenset[Scope], Field(min_length=1, description="modalities, and `admin`; all modalities where not given")
]
Models = Annotated[
    frozenset[ModelId] | None, Field(min_length=1, max_length=100, description="ids; all where not given")
]
End = Annotated[Instant, AfterValidator(check_is_to_come)]
PerMinute = Annotated[Limit | None, Field(description="generations begun")]
AtOnce = Annotated[Limit | None, Field(description="generations under way at once")]
PerPeriod = Annotated[
    Mapping[Period, Mapping[Counted, Annotated[float, Field(gt=0, le=MAX_LIMIT)]]],
    Field(description="by period (UTC) and unit, `money` in that of the prices", examples=[{"day": {"tokens": 1e6}}]),
]
Logged = Annotated[
    Kept | None, Field(description="what the usage log keeps of prompts and answers; what it keeps of all where null")
]


class NewKey(Body):
    """What a key may."""

    owner: Owner
    scopes: Scopes = frozenset(TASKS)
    models: Models = None
    expires_at: End | None = None
    requests_per_minute: PerMinute = None
    concurrent_streams: AtOnce = None
    budgets: PerPeriod = Field(default_factory=dict)
    log_content: Logged = None

    @property
    def grant(self) -> Grant:
        """As the keyring has it."""
        fields = dict(self)
        return Grant(**{**fields, "budgets": listed(self.budgets)})


class KeyChange(Body):
    """What a key may from now on; what is not named stays, and null takes a limit away."""

    owner: Owner = ""
    scopes: Scopes = frozenset(TASKS)
    models: Models = None
    expires_at: End | None = None
    requests_per_minute: PerMinute = None
    concurrent_streams: AtOnce = None
    budgets: PerPeriod = Field(default_factory=dict)
    log_content: Logged = None

    @property
    def changes(self) -> dict[str, Any]:
        """As the keyring has them."""
        given = {name: value for name, value in self if name in self.model_fields_set}
        return {**given, "budgets": listed(self.budgets)} if "budgets" in given else given


def listed(budgets: Mapping[Period, Mapping[Counted, float]]) -> tuple[Budget, ...]:
    """Write budgets as a grant has them."""
    return tuple(Budget(period, *each) for period, units in budgets.items() for each in units.items())


class KeyView(BaseModel):
    """A key as it may be shown."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["key"] = "key"
    id: str
    owner: str
    scopes: list[Scope]
    models: list[str] | None
    """Null: all."""
    created_at: datetime
    expires_at: datetime | None
    requests_per_minute: int | None
    concurrent_streams: int | None
    budgets: dict[Period, dict[Counted, float]]
    log_content: Kept | None
    last_used_at: datetime | None
    """To the minute."""
    revoked_at: datetime | None

    @classmethod
    def of(cls, shown: Key, **more: Any) -> Self:
        """Show a key, and what the class has `more`."""
        grant = shown.grant
        return cls(
            id=shown.id,
            owner=grant.owner,
            scopes=sorted(grant.scopes),
            models=None if grant.models is None else sorted(grant.models),
            created_at=shown.created_at,
            expires_at=grant.expires_at,
            requests_per_minute=grant.requests_per_minute,
            concurrent_streams=grant.concurrent_streams,
            budgets=by_period(grant.budgets),
            log_content=grant.log_content,
            last_used_at=shown.last_used_at,
            revoked_at=shown.revoked_at,
            **more,
        )


def by_period(budgets: Iterable[Budget]) -> dict[Period, dict[Counted, float]]:
    """Show budgets as they are set."""
    shown: dict[Period, dict[Counted, float]] = {}
    for budget in budgets:
        shown.setdefault(budget.period, {})[budget.unit] = budget.limit
    return shown


class CreatedKey(KeyView):
    """A key, this once with its text."""

    key: str
    """What its owner sends. It is nowhere else: who loses it needs another."""


class KeyDetail(KeyView):
    """A key, and how far its budgets are used."""

    used: dict[Period, dict[Counted, float]]
    """Of this day and this month (UTC): what is spent, and what requests under way may still use."""


class KeyPage(BaseModel):
    """Keys, newest first."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    data: list[KeyView]
    has_more: bool
    """Whether there are older ones; `after` with the last key's `id` asks for them."""


class KeyQuery(Body):
    """Which keys."""

    limit: Annotated[int, Field(ge=1, le=1000)] = PAGE_KEYS
    after: Annotated[str, StringConstraints(pattern=f"^{ID.pattern}$")] | None = None


class BudgetView(BaseModel):
    """What may be used in a day or a month, and how far it is."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    period: Period
    unit: Counted
    limit: float
    used: float
    """Spent, and what requests under way may still use."""


class BudgetList(BaseModel):
    """The budgets of a key."""

    object: Literal["list"] = "list"
    data: list[BudgetView]


@budgets.get("/v1/budgets")
async def list_budgets(request: Request, state: StateOf) -> BudgetList:
    """Show the caller's own budgets, and how far they are used; none: as much as there is."""
    caller = request.scope["caller"]
    pairs = zip(caller.budgets, await state.budgets.used(caller), strict=True)
    return BudgetList(data=[BudgetView(**{**vars(budget), "used": used.limit}) for budget, used in pairs])


@router.post("", status_code=201)
async def create_key(body: NewKey, request: Request, state: StateOf, response: Response) -> CreatedKey:
    """Make a key. The first one must be an admin's: from then on the gateway asks for keys."""
    if not request.scope["caller"].id and "admin" not in body.scopes:
        error = {
            "type": "first_key",
            "loc": ("body", "scopes"),
            "msg": "must hold 'admin' in the first key: without it nobody could make another",
            "input": None,
        }
        raise RequestValidationError([error])
    key, text = await state.keyring.add(body.grant)
    response.headers["cache-control"] = "no-store"
    return CreatedKey.of(key, key=str(text))


@router.get("")
async def list_keys(query: Annotated[KeyQuery, Query()], state: StateOf) -> KeyPage:
    """List the keys, revoked ones too, newest first."""
    keys = await state.keyring.page(query.limit + 1, query.after)
    return KeyPage(data=[KeyView.of(key) for key in keys[: query.limit]], has_more=len(keys) > query.limit)


@router.get("/{key_id}")
async def get_key(key_id: str, state: StateOf) -> KeyDetail:
    """Show one key, and how far its budgets are used."""
    key = await state.keyring.get(key_id)
    return KeyDetail.of(key, used=by_period(await state.budgets.used(key.caller)))


@router.patch("/{key_id}")
async def change_key(key_id: str, body: KeyChange, state: StateOf) -> KeyDetail:
    """Change what a key may: here at once, on other gateways within `ATELIER_KEY_CACHE_SECONDS`."""
    key = await state.keyring.change(key_id, body.changes)
    return KeyDetail.of(key, used=by_period(await state.budgets.used(key.caller)))


@router.delete("/{key_id}")
async def revoke_key(key_id: str, state: StateOf) -> KeyView:
    """End a key: here at once, on other gateways within `ATELIER_KEY_CACHE_SECONDS`."""
    return KeyView.of(await state.keyring.revoke(key_id))
