"""What was made is written down and settled for: the workers' receipts, and our own for what providers say."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Self

from gateway.budgets.budgets import Budgets, Made
from gateway.budgets.prices import Prices
from gateway.errors import BudgetsUnavailable, UsageUnavailable
from gateway.meter import Meter
from gateway.usage.log import UsageLog
from gateway.usage.writer import Writer
from services.registry import Task
from services.schema import Receipt
from services.units import UNITS

CAPACITY = 5000  # of our own that may wait
BATCH_SECONDS = 0.02  # that one waits for others: until it is written, what was reserved is


class Receipts:
    """Takes receipts; each may come twice.

    Args:
        usage: where they are written down.
        budgets: that they settle.
        prices: of the models that they name.
        writer: of our own, behind the requests' backs.
    """

    def __init__(self, usage: UsageLog, budgets: Budgets, prices: Prices) -> None:
        self._usage = usage
        self._budgets = budgets
        self._prices = prices
        self._own: Writer[Receipt] = Writer(self._take_own, capacity=CAPACITY, batch_seconds=BATCH_SECONDS)

    @classmethod
    @asynccontextmanager
    async def open(cls, usage: UsageLog, budgets: Budgets, prices: Prices) -> AsyncGenerator[Self]:
        """Open them, and at the end write what is queued."""
        receipts = cls(usage, budgets, prices)
        async with receipts._own:
            yield receipts

    async def take(self, receipts: Sequence[Receipt]) -> None:
        """Write receipts down and settle for them."""
        await self._usage.take(receipts)
        await self._budgets.settle(*map(self._made, receipts))

    def write(self, request_id: str, attempt: int, task: Task, model: str, meter: Meter) -> None:
        """Make a receipt of what a provider has said; of one that has not, or not in the task's unit, there is none."""
        units = meter.units
        if units is None or UNITS[task] not in units:
            return
        receipt = Receipt(
            id=token_hex(16),
            request_id=request_id,
            attempt=attempt,
            modality=task,
            model=model,
            units=dict(units),
            iterations=0,
            queue_seconds=0,
            run_seconds=meter.seconds,
            ending="complete" if meter.is_complete else "left",
        )
        self._own.put(receipt)

    async def _take_own(self, receipts: Sequence[Receipt]) -> None:
        """Take our own; for a database that is away the writer waits, who does not know it by a client's words."""
        try:
            await self.take(receipts)
        except (BudgetsUnavailable, UsageUnavailable) as error:
            raise error.__cause__ or error from None

    def _made(self, receipt: Receipt) -> Made:
        task: Task = receipt.modality  # type: ignore[assignment] # workers know no other
        price = self._prices.of(task, receipt.model) if receipt.model else None
        return Made(receipt.request_id, receipt.attempt, receipt.units.get(UNITS[task], 0), price)
