"""Median and 95th percentile of how long requests took, by nearest rank in the database; knows no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Select, case, func, select

from gateway.usage.schema import ReceiptRow, Usage

Measure = Literal["first_byte_seconds", "response_seconds", "run_seconds"]


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of a time that some requests took."""

    p50: Annotated[float, Field(description="The median, by nearest rank: half of them took no longer.")]
    p95: Annotated[float, Field(description="Likewise: 95 of 100 took no longer.")]


def ranked(
    measure: Measure, keys: Sequence[Any], conditions: Sequence[ColumnElement[bool]]
) -> Select[*tuple[Any, ...]]:
    """Let the database rank the rows of each group by a time, and find those two.

    `cume_dist` of a row is the share of its group that took no longer; the nearest rank of a share is the first row
    that has it.
    """
    values = select(*keys, seconds_of(measure).label("seconds")).where(*conditions).subquery()
    groups = [values.c[key.key] for key in keys]
    share = func.cume_dist().over(partition_by=groups or None, order_by=values.c.seconds)
    known = select(*groups, values.c.seconds, share.label("share")).where(values.c.seconds.is_not(None)).subquery()
    groups = [known.c[key.key] for key in keys]
    found = {f"p{percent}": func.min(case((known.c.share >= percent / 100, known.c.seconds))) for percent in (50, 95)}
    chosen = select(*groups, *(value.label(name) for name, value in found.items()))
    return chosen.group_by(*groups).having(func.count() > 0)


def seconds_of(measure: Measure) -> Any:
    """What a request's row says of a time; of the model's work, what all its receipts say together."""
    if measure == "run_seconds":
        return select(func.sum(ReceiptRow.run_seconds)).where(ReceiptRow.usage_id == Usage.id).scalar_subquery()
    return getattr(Usage, measure)
