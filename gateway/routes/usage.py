"""`GET /v1/usage`: the usage log, as a JSON page or as the CSV file that a spreadsheet opens."""

import csv
import io
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from gateway.callers import Caller
from gateway.usage.log import UsageLog
from gateway.usage.queries import Window
from gateway.usage.schema import Entry
from services.registry import Task
from services.schema import UNITS

PAGE_ROWS, MAX_PAGE_ROWS = 100, 1000
CSV_COLUMNS = (
    "Request ID",
    "Datetime",
    "Endpoint Triggered",
    "Client IP Address",
    "Response Time",
    "Status Code",
    "Successful",
)
OTHER_CSV_COLUMNS = (
    *("Caller", "Owner", "Method", "Route", "Model", "Modality", "Ending"),
    *("Bytes", "First Byte Time", "Queue Time", "Run Time"),
    *(unit.replace("_", " ").title() for unit in UNITS),
)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

router = APIRouter(tags=["usage"])


def _in_utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        return instant.replace(tzinfo=UTC)
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("lies outside the years 1 to 9999 in UTC") from error


Instant = Annotated[datetime, AfterValidator(_in_utc)]


def split_commas(values: object) -> object:
    """Read `a,b` as two values, as one that is given twice."""
    return [part for value in values for part in str(value).split(",")] if isinstance(values, list) else values


class UsageQuery(BaseModel):
    """Which entries, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    since: Instant | None = None
    """The earliest start of a request, itself included: ISO 8601, UTC where it names no zone."""
    until: Instant | None = None
    """The end of the time, itself not included."""
    limit: int | None = Field(default=None, ge=1)
    """Entries at most. JSON: 100 where not given, 1000 at most. CSV: all where not given."""
    after: int | None = Field(default=None, ge=0, lt=2**63)
    """The `id` of the last entry of the page before this one."""
    modality: Annotated[list[Task], BeforeValidator(split_commas)] = []
    """Only requests of these modalities, with commas; all where not given, and those that no model works on."""
    format: Literal["json", "csv"] | None = None
    """Goes before the `Accept` header."""

    def window(self, caller: str | None) -> Window:
        """The part of the log that is asked for, as far as `caller` may see it; None: all."""
        return Window(since=self.since, until=self.until, after=self.after, caller=caller, modalities=self.modality)


class UsagePage(BaseModel):
    """Entries, newest first."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    data: list[Entry]
    has_more: bool
    """Whether there are older ones; `after` with the last entry's `id` asks for them."""


class CsvResponse(StreamingResponse):
    """A CSV file that is made while it is sent."""

    media_type = "text/csv"

    def __init__(self, first_page: list[Entry], other_pages: AsyncGenerator[list[Entry]]) -> None:
        super().__init__(
            _csv_chunks(first_page, other_pages), headers={"content-disposition": 'attachment; filename="usage.csv"'}
        )
        self.other_pages = other_pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, and stop reading the log however that ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.other_pages.aclose()


@router.get(
    "/v1/usage",
    response_model=UsagePage,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def list_usage(request: Request, query: Annotated[UsageQuery, Query()]) -> UsagePage | CsvResponse:
    """List who asked for what and how it went, newest first: as JSON, or with `Accept: text/csv` as a CSV file."""
    usage: UsageLog = request.app.state.usage
    window = query.window(visible_caller(request.scope["caller"]))
    if wants_csv(query.format, request):
        pages = usage.pages(window, query.limit)
        return CsvResponse(await anext(pages, []), pages)
    num_rows = min(query.limit or PAGE_ROWS, MAX_PAGE_ROWS)
    entries = await usage.page(window, num_rows + 1)
    return UsagePage(data=entries[:num_rows], has_more=len(entries) > num_rows)


def visible_caller(caller: Caller) -> str | None:
    """Whose requests a caller may see: everybody's (None) with the scope `admin`, which anybody has in open mode."""
    return None if "admin" in caller.scopes else caller.id


def wants_csv(asked_format: str | None, request: Request) -> bool:
    """Whether the answer is to be CSV; what the query says goes before the header."""
    return asked_format == "csv" or (asked_format is None and _prefers_csv(request.headers.get("accept", "")))


def _prefers_csv(accept: str) -> bool:
    """Tell whether CSV is the first of our two formats that an `Accept` header names."""
    named = [media_range.split(";")[0].strip().lower() for media_range in accept.split(",")]
    ours = [media_type for media_type in named if media_type in ("text/csv", "application/json", "*/*")]
    return ours[:1] == ["text/csv"]


async def _csv_chunks(first_page: list[Entry], other_pages: AsyncGenerator[list[Entry]]) -> AsyncGenerator[str]:
    yield _csv_text([(*CSV_COLUMNS, *OTHER_CSV_COLUMNS)]) + _csv_text(map(_csv_row, first_page))
    async for page in other_pages:
        yield _csv_text(map(_csv_row, page))


def _csv_text(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _csv_row(entry: Entry) -> tuple[object, ...]:
    return (
        inert(entry.request_id),
        entry.started_at.isoformat(),
        inert(entry.endpoint),
        inert(entry.client_address),
        entry.response_seconds,
        entry.status,
        entry.successful,
        *map(inert, (entry.caller, entry.owner, entry.method, entry.route, entry.model, entry.modality, entry.ending)),
        *(entry.bytes_out, entry.first_byte_seconds, entry.queue_seconds, entry.run_seconds),
        *(entry.units.get(unit, "") for unit in UNITS),
    )


def inert(cell: str) -> str:
    """Return a cell that a spreadsheet shows rather than runs: it takes a leading apostrophe as "this is text".

    Source: OWASP, CSV Injection.
    """
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
