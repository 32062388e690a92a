"""What is written down about a request, and the table it lies in; knows no HTTP and no database server."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from gateway.database.types import Line, Serial, Tables, UtcDateTime

Ending = Literal["complete", "left", "failed"]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Entry(Record):
    """A record as it lies in the log."""

    id: Annotated[int, Field(description="The row's number in the log.")]


class Usage(Tables):
    """One row a request; the columns are the fields of `Entry`."""

    __tablename__ = "usage"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(Line(128))
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
