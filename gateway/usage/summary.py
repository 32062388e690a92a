"""Adds the daily roll-up up, and for hours and percentiles the rows: by time, caller and model; knows no HTTP."""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.usage.percentiles import Measure, Percentiles, ranked
from gateway.usage.schema import ReceiptRow, Units, Usage, UsageDay, units_of
from services.schema import UNITS

Group = Literal["caller", "owner", "model", "modality"]
Width = Literal["1h", "1d", "1mo", "all"]
WHOLE = ("requests", "failures", "bytes_out")
SECONDS = ("response_seconds", "queue_seconds", "run_seconds")
NUMBERS = (*WHOLE, *SECONDS, *UNITS)

Ranks = dict[tuple[str, ...], dict[Measure, Percentiles | None]]  # by group


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be added up.

    Args:
        since: the first day, in UTC; for hours the first of them, an instant.
        until: the day after the last one, or the hour.
        groups: what is told apart.
        callers: whose requests; None: everybody's. So with models and modalities.
        measures: of which times the percentiles are found.
    """

    since: date
    until: date
    groups: Sequence[Group] = ()
    callers: Sequence[str] | None = None
    models: Sequence[str] | None = None
    modalities: Sequence[str] | None = None
    measures: Sequence[Measure] = ()


@dataclass(frozen=True, kw_only=True)
class Total:
    """What the requests of a bucket and a group come to."""

    caller: Annotated[str | None, Field(description="The key's id; null where callers are not told apart.")] = None
    owner: Annotated[str | None, Field(description="Whose key it is; null likewise.")] = None
    model: Annotated[str | None, Field(description="Empty: no model worked on them; null likewise.")] = None
    modality: Annotated[str | None, Field(description="Likewise.")] = None
    requests: int
    failures: Annotated[int, Field(description="Requests whose callers did not get what they asked for.")]
    units: Annotated[Units, Field(description="What was made; nothing of what is not named.")]
    bytes_out: int
    response_seconds: float
    queue_seconds: float
    run_seconds: float
    percentiles: Annotated[
        dict[Measure, Percentiles | None],
        Field(description="Of the times that were asked for; null where no row is kept that knows it."),
    ]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A stretch of time."""

    start: Annotated[date | datetime, Field(description="Its first day, in UTC; of hours, when it begins.")]
    end: Annotated[date | datetime, Field(description="The day after its last one; of hours, when it ends.")]
    results: list[Total]


async def summarize(engine: AsyncEngine, question: Question, width: Width, num_buckets: int) -> list[Bucket]:
    """Return the first buckets of the time that is asked for; one in which nothing happened is empty."""
    spans = list(islice(cut(question.since, question.until, width), num_buckets))
    if not spans:
        return []
    whole = [(spans[0][0], spans[-1][1])]
    starts = [start for start, _ in spans]
    found: list[defaultdict[tuple[str, ...], Counter[str]]] = [defaultdict(Counter) for _ in spans]
    async with engine.connect() as connection:
        for place, span in enumerate(spans if width == "1h" else ()):
            for asked in in_rows(question, *span):
                for row in (await connection.execute(asked)).mappings():
                    group = tuple(row[name] for name in question.groups)
                    found[place][group].update({name: row[name] for name in NUMBERS if name in row})
        for since, until in () if width == "1h" else whole if width == "1d" else spans:
            asked = added_up(replace(question, since=since, until=until), by_day=width == "1d")
            for row in (await connection.execute(asked)).mappings():
                group = tuple(row[name] for name in question.groups)
                place = bisect(starts, row["first_day"]) - 1
                found[place][group].update({name: row[name] for name in NUMBERS})
        ranks = [await rank(connection, question, *span) for span in spans]
    return [
        Bucket(
            start=start,
            end=end,
            results=[total_of(question, *item, times.get(item[0], {})) for item in sorted(totals.items())],
        )
        for (start, end), totals, times in zip(spans, found, ranks, strict=True)
    ]


async def rank(connection: AsyncConnection, question: Question, since: date, until: date) -> Ranks:
    """Find the percentiles of each group in a stretch of time."""
    keys, ranks = keys_of(question), defaultdict[tuple[str, ...], dict[Measure, Percentiles | None]](dict)
    for measure in question.measures:
        asked = ranked(measure, keys, row_conditions(question, since, until))
        for row in (await connection.execute(asked)).mappings():
            group = tuple(row[name] for name in question.groups)
            ranks[group][measure] = Percentiles(p50=row["p50"], p95=row["p95"])
    return ranks


def cut(since: date, until: date, width: Width) -> Iterator[tuple[date, date]]:
    """Cut a time into hours, or days or months of the calendar, or leave it whole."""
    while since < until:
        next_month = (since.replace(day=1) + timedelta(days=32)).replace(day=1)
        hour, day = timedelta(hours=1), timedelta(days=1)  # a date and an hour are the same date
        end = {"1h": since + hour, "1d": since + day, "1mo": next_month, "all": until}[width]
        yield since, min(end, until)
        since = end


def added_up(question: Question, *, by_day: bool) -> Select[*tuple[Any, ...]]:
    """Let the database add up each group, of each day or of all."""
    days = [UsageDay.day] if by_day else []
    keys = [getattr(UsageDay, group) for group in question.groups]
    sums = [func.sum(getattr(UsageDay, name)).label(name) for name in NUMBERS]
    selected = select(func.min(UsageDay.day).label("first_day"), *keys, *sums).where(*conditions(question))
    return selected.group_by(*days, *keys).having(func.count() > 0)


def in_rows(question: Question, since: date, until: date) -> Iterator[Select[*tuple[Any, ...]]]:
    """Let the database add up what the rows of an hour say, and what their receipts do."""
    keys = keys_of(question)
    seen = {
        "requests": func.count(),
        "failures": func.sum(case((Usage.successful, 0), else_=1)),
        "bytes_out": func.sum(Usage.bytes_out),
        "response_seconds": func.sum(Usage.response_seconds),
    }
    said = {name: func.sum(getattr(ReceiptRow, name)) for name in NUMBERS if name not in seen}
    for sums, table in ((seen, Usage), (said, ReceiptRow)):
        statement = select(*keys, *(number.label(name) for name, number in sums.items())).select_from(Usage)
        if table is ReceiptRow:
            statement = statement.join(ReceiptRow, ReceiptRow.usage_id == Usage.id)
        yield statement.where(*row_conditions(question, since, until)).group_by(*keys).having(func.count() > 0)


def keys_of(question: Question) -> list[Any]:
    """The columns of a row that tell its group."""
    return [getattr(Usage, group) for group in question.groups]


def row_conditions(question: Question, since: date, until: date) -> list[ColumnElement[bool]]:
    """Say which rows are meant."""
    wanted = {
        Usage.caller: question.callers,
        Usage.model: question.models,
        Usage.modality: question.modalities,
    }
    of_some = [column.in_(values) for column, values in wanted.items() if values is not None]
    return [Usage.started_at >= instant_of(since), Usage.started_at < instant_of(until), *of_some]


def instant_of(day: date) -> datetime:
    """When a day begins, in UTC; an hour is an instant already."""
    return day if isinstance(day, datetime) else datetime.combine(day, time(), UTC)


def conditions(question: Question) -> list[ColumnElement[bool]]:
    """Say which days and which requests are meant."""
    wanted = {
        UsageDay.caller: question.callers,
        UsageDay.model: question.models,
        UsageDay.modality: question.modalities,
    }
    of_some = [column.in_(values) for column, values in wanted.items() if values is not None]
    return [UsageDay.day >= question.since, UsageDay.day < question.until, *of_some]


def total_of(
    question: Question,
    group: Sequence[str],
    numbers: Mapping[str, float],
    times: Mapping[Measure, Percentiles | None],
) -> Total:
    """Put a group's numbers into words."""
    said: dict[str, Any] = dict(zip(question.groups, group, strict=True))
    said |= {name: int(numbers[name]) for name in WHOLE} | {name: round(numbers[name], 6) for name in SECONDS}
    percentiles = {measure: times.get(measure) for measure in question.measures}
    return Total(units=units_of(numbers), percentiles=percentiles, **said)
