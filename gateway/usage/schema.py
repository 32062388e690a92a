"""What is written down about a request, and the tables it lies in; knows no HTTP and no database server."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import BigInteger, Date, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from gateway.database.types import Line, Serial, Tables, UtcDateTime
from services.schema import UNITS, Unit

Ending = Literal["complete", "left", "failed"]
MAX_CONTENT = 65_536  # characters
Units = dict[Unit, int | float]


def units_of(numbers: Mapping[str, Any]) -> Units:
    """Choose the units of which there are some; all but seconds are whole."""
    return {
        unit: round(numbers[unit], 6) if unit == "audio_seconds" else round(numbers[unit])
        for unit in UNITS
        if numbers[unit]
    }


@dataclass(frozen=True, kw_only=True)
class Record:
    """One request, as the middleware saw it."""

    request_id: Annotated[str, Field(description="The id that the response carried in `x-request-id`.")]
    started_at: Annotated[datetime, Field(description="When the request arrived, in UTC.")]
    method: Annotated[str, Field(description="The HTTP method.")]
    endpoint: Annotated[str, Field(description="The path without its query, which may hold a prompt.")]
    client_address: Annotated[str, Field(description="The caller's IP address.")]
    response_seconds: Annotated[
        float, Field(description="From the request's arrival to the last byte of the body, streamed or not.")
    ]
    first_byte_seconds: Annotated[
        float | None, Field(description="From the request's arrival to the headers; null where none were sent.")
    ]
    status: Annotated[int, Field(description="The HTTP status that was sent, or would have been.")]
    bytes_out: Annotated[int, Field(description="Bytes of body sent.")]
    ending: Annotated[
        Ending,
        Field(description="`complete`: sent whole. `left`: the caller left before. `failed`: broken on the way."),
    ]
    successful: Annotated[bool, Field(description="Whether the caller got what was asked for.")]
    caller: Annotated[str, Field(description="The key's id; empty where nobody needs one.")]
    owner: Annotated[str, Field(description="Whose key it is.")]
    route: Annotated[str, Field(description="The template of the path; `other` where there is no such route.")]
    model: Annotated[str, Field(description="The model that worked on it; empty where none did.")]
    modality: Annotated[str, Field(description="text, audio, image, video or mesh; empty where no model works.")]
    prompt: Annotated[str | None, Field(description="What was asked, where the operator keeps it; redacted and cut.")]
    output: Annotated[str | None, Field(description="What text was answered, likewise.")]


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """A record as it lies in the log."""

    id: Annotated[int, Field(description="The row's number in the log.")]


@dataclass(frozen=True, kw_only=True)
class Entry(Row):
    """A record with what the workers' receipts say, all attempts together."""

    units: Annotated[
        Units,
        Field(description="What the workers really made, also if the caller left; what is not named was not made."),
    ]
    queue_seconds: Annotated[float | None, Field(description="Waiting for the model; null without a receipt.")]
    run_seconds: Annotated[float | None, Field(description="Of the model's work; null without a receipt.")]


class Usage(Tables):
    """One row a request; the columns are the fields of `Row`."""

    __tablename__ = "usage"
    __table_args__ = (Index(None, "caller", "started_at"),)

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(Line(128), index=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    method: Mapped[str] = mapped_column(Line(32))
    endpoint: Mapped[str] = mapped_column(Line(2048))
    client_address: Mapped[str] = mapped_column(Line(64))
    response_seconds: Mapped[float]
    first_byte_seconds: Mapped[float | None]
    status: Mapped[int]
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    ending: Mapped[Ending] = mapped_column(String(16))
    successful: Mapped[bool]
    caller: Mapped[str] = mapped_column(Line(64))
    owner: Mapped[str] = mapped_column(Line(128))
    route: Mapped[str] = mapped_column(Line(256))
    model: Mapped[str] = mapped_column(Line(200))
    modality: Mapped[str] = mapped_column(Line(16))
    prompt: Mapped[str | None] = mapped_column(Line(MAX_CONTENT))
    output: Mapped[str | None] = mapped_column(Line(MAX_CONTENT))


class Made:
    """Columns: what workers say that they made, and how long they took."""

    queue_seconds: Mapped[float]
    run_seconds: Mapped[float]
    tokens: Mapped[float]
    prompt_tokens: Mapped[float]
    cached_tokens: Mapped[float]
    completion_tokens: Mapped[float]
    pixel_steps: Mapped[float]
    audio_seconds: Mapped[float]
    frames: Mapped[float]
    meshes: Mapped[float]


class ReceiptRow(Made, Tables):
    """One row a receipt."""

    __tablename__ = "receipts"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    request_id: Mapped[str] = mapped_column(Line(128), index=True)
    attempt: Mapped[int]
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)
    usage_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    """The row of the request, as soon as both are there; counted in the roll-up from then on."""
    modality: Mapped[str] = mapped_column(Line(16))
    model: Mapped[str] = mapped_column(Line(200))
    iterations: Mapped[int] = mapped_column(BigInteger)
    ending: Mapped[str] = mapped_column(String(16))


class UsageDay(Made, Tables):
    """The roll-up: all requests of a day, a caller and a model, together; stays when their rows are deleted."""

    __tablename__ = "usage_days"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    caller: Mapped[str] = mapped_column(Line(64), primary_key=True)
    owner: Mapped[str] = mapped_column(Line(128), primary_key=True)
    model: Mapped[str] = mapped_column(Line(200), primary_key=True)
    modality: Mapped[str] = mapped_column(Line(16), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[int] = mapped_column(BigInteger)
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    response_seconds: Mapped[float]
