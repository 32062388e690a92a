"""What a key is, how it is written, and the table it lies in; knows no HTTP."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from secrets import token_hex, token_urlsafe

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from gateway.callers import Budget, Caller, Scope
from gateway.database.types import Line, Tables, UtcDateTime
from gateway.usage.content import Kept

ID_BYTES = 8
SECRET_BYTES = 32
ID = re.compile("[0-9a-f]{16}")
MARK = "atl_"  # that every key begins with
WRITTEN = re.compile(rf"{MARK}([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True)
class KeyText:
    """A key as its owner has it: an id that may be shown, and a secret that may not."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> "KeyText":
        """Make one up."""
        return cls(token_hex(ID_BYTES), token_urlsafe(SECRET_BYTES))

    @classmethod
    def read(cls, text: str) -> "KeyText | None":
        """Take a key apart; None where it is none."""
        match = WRITTEN.fullmatch(text)
        return cls(*match.groups()) if match else None

    @property
    def digest(self) -> str:
        """What is stored of the secret: of 32 random bytes a plain hash cannot be guessed back."""
        return sha256(self.secret.encode()).hexdigest()

    def __str__(self) -> str:
        """Write it out, secret and all."""
        return f"{MARK}{self.id}_{self.secret}"


def without_keys(text: str) -> str:
    """Leave the secrets of keys out of a text that a caller has put them into, where none belong."""
    return WRITTEN.sub(rf"{MARK}\1_redacted", text) if MARK in text else text


@dataclass(frozen=True)
class Grant:
    """What a key's owner may.

    Args:
        owner: a name for people.
        scopes: the modalities, and whether the operator's routes.
        models: that may be asked for; None: all.
        expires_at: until when; None: for ever.
        requests_per_minute: generations that may be asked for in a minute; None: any number.
        concurrent_streams: generations that may be under way at once; None: any number.
        budgets: what may be used in a day or a month.
        log_content: what the usage log keeps of what is asked and answered; None: what it keeps of everybody's.
    """

    owner: str
    scopes: frozenset[Scope]
    models: frozenset[str] | None = None
    expires_at: datetime | None = None
    requests_per_minute: int | None = None
    concurrent_streams: int | None = None
    budgets: tuple[Budget, ...] = ()
    log_content: Kept | None = None


@dataclass(frozen=True)
class Key:
    """A key as the database has it."""

    id: str
    digest: str = field(repr=False)
    grant: Grant
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    @cached_property
    def caller(self) -> Caller:
        """Who asks with it."""
        grant = self.grant
        return Caller(
            self.id,
            grant.owner,
            grant.scopes,
            grant.models,
            requests_per_minute=grant.requests_per_minute,
            concurrent_streams=grant.concurrent_streams,
            budgets=grant.budgets,
            log_content=grant.log_content,
        )

    def is_valid(self, now: datetime) -> bool:
        """Whether it still opens anything."""
        return self.revoked_at is None and (self.grant.expires_at is None or now < self.grant.expires_at)


class Keys(Tables):
    """One row a key; revoked ones stay, so that the log's ids keep their meaning."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(Line(200))
    scopes: Mapped[list[Scope]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    requests_per_minute: Mapped[int | None]
    concurrent_streams: Mapped[int | None]
    budgets: Mapped[list[dict[str, str | float]]] = mapped_column(JSON)
    log_content: Mapped[Kept | None] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
