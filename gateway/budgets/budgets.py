"""The budgets as routes and receipts see them: reserve at admission, settle or release, expire."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.budgets import ledger
from gateway.budgets.schema import SCALES, Hold, name_of, scaled, seconds_left
from gateway.callers import Budget, Caller, Counted
from gateway.errors import BudgetsUnavailable, InsufficientQuota
from services.units import Unit

logger = logging.getLogger("atelier.gateway")

SWEEP_SECONDS = 30.0  # between two looks for reservations whose deadline has passed
KEPT_DAYS = 62  # that what was spent is kept; the usage log has it for good
RECEIPT_SECONDS = 60.0  # that a receipt may take after the deadline
AWAY = (SQLAlchemyError, OSError)  # OSError: a server that does not answer


@dataclass(frozen=True)
class Made:
    """What a receipt says of an attempt at a request.

    Args:
        request_id: the request.
        attempt: which one; it was another model's, maybe.
        units: of the modality that were made.
        price: of a unit; None: that of the model that was asked for.
    """

    request_id: str
    attempt: int
    units: float
    price: float | None = None


@dataclass(frozen=True)
class Reserved:
    """What a request has reserved.

    Args:
        request_id: the request.
        key_id: whose budgets.
        budgets: what is held of each.
    """

    request_id: str
    key_id: str
    budgets: Mapping[Hold, Budget]

    @property
    def limits(self) -> Mapping[Hold, int]:
        """The budgets, scaled."""
        return {hold: scaled(budget.unit, budget.limit) for hold, budget in self.budgets.items()}


class Budgets:
    """Reserves for callers who have budgets; others cost nothing.

    Args:
        database: with the tables, shared by all gateways.
        deadline: seconds that a generation may take.
    """

    def __init__(self, database: AsyncEngine, deadline: float) -> None:
        self._database = database
        self._seconds = timedelta(seconds=deadline + RECEIPT_SECONDS)

    @classmethod
    @asynccontextmanager
    async def open(cls, database: AsyncEngine, deadline: float) -> AsyncGenerator[Self]:
        """Open them, and look for what has expired from time to time."""
        budgets = cls(database, deadline)
        sweeping = asyncio.create_task(budgets._keep_sweeping(), name="reservations")
        try:
            yield budgets
        finally:
            sweeping.cancel()
            await asyncio.wait({sweeping})

    async def reserve(
        self,
        caller: Caller,
        request_id: str,
        unit: Unit,
        units: float,
        price: float,
        money: float,
        seconds: float | None = None,
    ) -> Reserved | None:
        """Reserve for a request; None: no budget of the key counts what it uses.

        Args:
            caller: who asks.
            request_id: what the receipt will name.
            unit: the modality's.
            units: that the request can use at most.
            price: of a unit, where the receipt's model has none.
            money: that it can cost at most.
            seconds: until all of it counts as spent; None: the deadline.

        Raises:
            InsufficientQuota: a budget does not allow it.
            BudgetsUnavailable: the database does not answer.
        """
        now = datetime.now(UTC)
        needs: dict[Counted, float] = {unit: units, "money": money}
        budgets = {
            Hold(name_of(budget.period, now), budget.unit, scaled(budget.unit, needs[budget.unit])): budget
            for budget in caller.budgets
            if budget.unit in needs
        }
        if not budgets:
            return None
        reserved = Reserved(request_id, caller.id, budgets)
        expires_at = now + (self._seconds if seconds is None else timedelta(seconds=seconds))
        with within(budgets):
            await ledger.reserve(
                self._database, request_id, caller.id, reserved.limits, price=price, expires_at=expires_at
            )
        return reserved

    async def keep(self, reserved: Reserved, attempt: int) -> None:
        """Keep what is reserved for this attempt at the request: receipts of earlier ones settle nothing from now on.

        Raises:
            InsufficientQuota: one has, and what that gave back is somebody else's by now.
            BudgetsUnavailable: the database does not answer.
        """
        with within(reserved.budgets):
            await ledger.keep(self._database, reserved.request_id, reserved.key_id, reserved.limits, attempt=attempt)

    async def settle(self, *receipts: Made) -> None:
        """Count what receipts say was made; those of requests that reserved nothing cost one look all together.

        The same may come twice. What comes after the reservation has expired is not news.

        Raises:
            BudgetsUnavailable: the database does not answer; some may be counted already.
        """
        with unavailable():
            reserved = await ledger.reserved(self._database, {receipt.request_id for receipt in receipts})
            for receipt in receipts:
                if receipt.request_id in reserved:
                    attempt, units, price = receipt.attempt, receipt.units, receipt.price
                    await ledger.settle(self._database, receipt.request_id, attempt, units, price)

    async def release(self, request_id: str) -> None:
        """Give back what a request reserved that came to nothing; its deadline does not, where the database is away."""
        try:
            await ledger.release(self._database, request_id)
        except AWAY as error:
            logger.warning("nothing is given back: %s", type(error).__name__)

    async def used(self, caller: Caller) -> list[Budget]:
        """The caller's budgets, and as their limits what is spent and reserved of them now."""
        now = datetime.now(UTC)
        names = {budget.period: name_of(budget.period, now) for budget in caller.budgets}
        with unavailable():
            amounts = await ledger.spending(self._database, caller.id, names.values())
        return [
            replace(budget, limit=amounts.get((names[budget.period], budget.unit), 0) / SCALES.get(budget.unit, 1))
            for budget in caller.budgets
        ]

    async def _keep_sweeping(self) -> None:
        forgotten_on = None
        while True:
            try:
                if forgotten_on != (today := datetime.now(UTC).date()):
                    await ledger.forget(self._database, today - timedelta(days=KEPT_DAYS))
                    forgotten_on = today
                while await ledger.expire(self._database, datetime.now(UTC)) == ledger.BATCH_ROWS:
                    pass
            except AWAY as error:
                logger.warning("reservations cannot be looked through: %s", type(error).__name__)
            await asyncio.sleep(SWEEP_SECONDS)


@contextmanager
def unavailable() -> Iterator[None]:
    """Say that the database is away in words that a client may read."""
    try:
        yield
    except IntegrityError:
        raise
    except AWAY as error:
        raise BudgetsUnavailable("the budgets of this key cannot be looked up at the moment") from error


@contextmanager
def within(budgets: Mapping[Hold, Budget]) -> Iterator[None]:
    """Say in words that a client may read what cannot be reserved of these, and that the database is away."""
    try:
        with unavailable():
            yield
    except ledger.Spent as error:
        raise refusal(budgets[error.hold], error.hold.need) from error


def refusal(budget: Budget, need: int) -> InsufficientQuota:
    """Say which budget does not allow it, and when it begins anew."""
    amount = need / SCALES.get(budget.unit, 1)
    message = (
        f"this may use {amount:.6g} {budget.unit.replace('_', ' ')}, and less is left of the "
        f"{budget.limit:.6g} that this key has for the {budget.period}; ask for less, or come back when the next "
        f"{budget.period} begins (UTC)"
    )
    seconds = seconds_left(budget.period, datetime.now(UTC))
    return InsufficientQuota(message, f"budgets.{budget.period}.{budget.unit}", seconds)
