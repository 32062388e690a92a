"""What is written down about a request, and the table it lies in; knows no HTTP and no database server."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import BigInteger, DateTime, Dialect, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

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


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware in Python, in UTC in the database, also in SQLite, which keeps no zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn any zone into UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Say the zone that SQLite left out."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Line(TypeDecorator[str]):
    """Text that came from a client, made such that every database stores it.

    One row that a database refuses would hold up the batch it is in. So: cut at the column's length, and without NUL
    (Postgres has none in text) and lone surrogates (not UTF-8).
    """

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Cut what is too long and replace what cannot be stored."""
        if value is None or (len(value) <= self.length and value.isascii() and value.isprintable()):
            return value
        return value[: self.length].encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


class Tables(DeclarativeBase):
    """The tables of the usage log; constraints have names, so that a migration can change them on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Usage(Tables):
    """One row a request; the columns are the fields of `Entry`."""

    __tablename__ = "usage"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"),  # SQLite counts up an INTEGER key only
        primary_key=True,
        autoincrement=True,
    )
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
