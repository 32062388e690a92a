"""`GET /v1/usage/summary`: what all requests came to, by time, caller, model and modality, as JSON or CSV."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gateway.routes.usage import Instant, inert, split_commas, visible_caller, wants_csv
from gateway.usage.log import UsageLog
from gateway.usage.percentiles import Measure
from gateway.usage.summary import NUMBERS, Bucket, Group, Question, Total, Width
from services.registry import Task
from services.schema import UNITS

DEFAULT_DAYS = 30
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
DEFAULT_HOURS, MAX_HOURS = 24, 168  # which are counted row by row
RANKS = ("p50", "p95")

router = APIRouter(tags=["usage"])


def check_year(instant: datetime) -> datetime:
    """Refuse years whose calendar ends near."""
    if not 2000 <= instant.year < 3000:
        raise ValueError("must lie between the years 2000 and 2999")
    return instant


Day = Annotated[Instant, AfterValidator(check_year)]
Ids = Annotated[list[str], Field(max_length=1000), BeforeValidator(split_commas)]


class SummaryQuery(BaseModel):
    """What is added up, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    since: Day | None = None
    """The first day, in UTC; 30 days ago where not given. Of hours the first one; the last 24 where not given."""
    until: Day | None = None
    """The last day, in UTC: itself counted, unless midnight is given. Today where not given."""
    bucket_width: Width = "1d"
    """Of time: hours, days, months of the calendar, or all in one. Hours go back as far as the rows of the log."""
    group_by: Annotated[list[Group], BeforeValidator(split_commas)] = []
    """What is told apart; several with commas."""
    caller: Ids = []
    """Only requests of these keys."""
    model: Ids = []
    """Only requests to these models."""
    modality: Annotated[list[Task], BeforeValidator(split_commas)] = []
    """Only requests of these modalities."""
    percentiles: Annotated[list[Measure], BeforeValidator(split_commas)] = []
    """Of what times the median and the 95th percentile are found too, as far back as the rows of the log go."""
    limit: int = Field(default=31, ge=1, le=366)
    """Buckets at most, the oldest first; hours: 168 at most."""
    format: Literal["json", "csv"] | None = None
    """Goes before the `Accept` header."""

    def question(self, visible: str | None) -> Question:
        """What is asked for, as far as a caller may see it; None: all."""
        until = self.until or datetime.now(UTC)
        last = until - timedelta(microseconds=1) if self.until else until
        ends = self.last_hour(last) if self.bucket_width == "1h" else self.last_day(last.date())
        return Question(
            since=ends[0],
            until=ends[1],
            groups=tuple(dict.fromkeys(self.group_by)),
            callers=only(self.caller, visible),
            models=self.model or None,
            modalities=self.modality or None,
            measures=tuple(dict.fromkeys(self.percentiles)),
        )

    def last_day(self, last: date) -> tuple[date, date]:
        """The first day, and the one after the last."""
        return self.since.date() if self.since else last - (DEFAULT_DAYS - 1) * DAY, last + DAY

    def last_hour(self, last: datetime) -> tuple[datetime, datetime]:
        """The first hour, and the one after the last."""
        end = hour_of(last) + HOUR
        return hour_of(self.since) if self.since else end - DEFAULT_HOURS * HOUR, end

    @property
    def num_buckets(self) -> int:
        """How many are made at most."""
        return min(self.limit, MAX_HOURS) if self.bucket_width == "1h" else self.limit


def hour_of(instant: datetime) -> datetime:
    """When the hour of an instant began."""
    return instant.replace(minute=0, second=0, microsecond=0)


def only(asked: Sequence[str], visible: str | None) -> Sequence[str] | None:
    """Return whose requests are meant, of those that may be seen."""
    if visible is None:
        return asked or None
    return [visible] if not asked or visible in asked else []


class UsageSummary(BaseModel):
    """Buckets of time, oldest first."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["page"] = "page"
    data: list[Bucket]
    has_more: bool
    """Whether the time goes on; `since` with the last bucket's `end` asks for it."""


@router.get(
    "/v1/usage/summary",
    response_model=UsageSummary,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def summarize_usage(request: Request, query: Annotated[SummaryQuery, Query()]) -> UsageSummary | Response:
    """Add up who used what: requests, failures, units, bytes and seconds, in buckets of time; and rank the times."""
    usage: UsageLog = request.app.state.usage
    question = query.question(visible_caller(request.scope["caller"]))
    buckets = await usage.summarize(question, query.bucket_width, query.num_buckets)
    if wants_csv(query.format, request):
        headers = {"content-disposition": 'attachment; filename="usage-summary.csv"'}
        return Response(as_csv(question, buckets), media_type="text/csv", headers=headers)
    return UsageSummary(data=buckets, has_more=bool(buckets) and buckets[-1].end < question.until)


def as_csv(question: Question, buckets: Sequence[Bucket]) -> str:
    """Write a line for each group of each bucket."""
    text = io.StringIO()
    writer = csv.writer(text)
    ranks = [f"{measure} {rank}" for measure in question.measures for rank in RANKS]
    writer.writerow([name.replace("_", " ").title() for name in ("start", "end", *question.groups, *NUMBERS, *ranks)])
    for bucket in buckets:
        writer.writerows(row_of(question, bucket, total) for total in bucket.results)
    return text.getvalue()


def row_of(question: Question, bucket: Bucket, total: Total) -> list[object]:
    """Write a line; what is not known is empty."""
    groups = [inert(getattr(total, group)) for group in question.groups]
    numbers = [total.units.get(name, 0) if name in UNITS else getattr(total, name) for name in NUMBERS]
    ranks = [getattr(total.percentiles[measure], rank, None) for measure in question.measures for rank in RANKS]
    return [bucket.start.isoformat(), bucket.end.isoformat(), *groups, *numbers, *ranks]
