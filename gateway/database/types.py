"""What all tables share: their registry, and column types that every database stores; knows no table."""

from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up an INTEGER key only


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
    """All tables; constraints have names, so that a migration can change them on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
