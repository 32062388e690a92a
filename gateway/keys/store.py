"""Reads and writes the table of keys; caches nothing and decides nothing."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.callers import Budget
from gateway.errors import NoSuchPlace
from gateway.keys.schema import Grant, Key, Keys, KeyText

Columns = tuple[object, ...]


async def add(database: AsyncEngine, text: KeyText, grant: Grant) -> Key:
    """Store a key, of whose secret only the hash is kept.

    Raises:
        IntegrityError: there is a key of that id.
    """
    key = Key(text.id, text.digest, grant, created_at=datetime.now(UTC))
    row = {"id": key.id, "digest": key.digest, "created_at": key.created_at, **columns(grant)}
    async with database.begin() as connection:
        await connection.execute(insert(Keys).values(row))
    return key


async def get(database: AsyncEngine, key_id: str) -> Key | None:
    """Return one key, if there is such a one."""
    async with database.connect() as connection:
        row = (await connection.execute(select(Keys.__table__).where(Keys.id == key_id))).one_or_none()
        return None if row is None else _key(row)


async def page(database: AsyncEngine, num_keys: int, after: str | None) -> list[Key]:
    """Return the newest keys, revoked ones too; those behind the key `after`, where it is given.

    Raises:
        NoSuchPlace: there is no such key.
    """
    newest_first = select(Keys.__table__).order_by(Keys.created_at.desc(), Keys.id.desc()).limit(num_keys)
    if after is not None:
        created_at = select(Keys.created_at).where(Keys.id == after).scalar_subquery()
        newest_first = newest_first.where(tuple_(Keys.created_at, Keys.id) < tuple_(created_at, after))
    async with database.connect() as connection:
        rows = (await connection.execute(newest_first)).all()
        if after is not None and not rows and await connection.scalar(select(created_at)) is None:
            raise NoSuchPlace(after)
        return [_key(row) for row in rows]


async def change(database: AsyncEngine, key_id: str, grant: Grant, names: Collection[str]) -> bool:
    """Change what a key may, in the fields that are named; whether there is such a key that has not ended."""
    values = {name: value for name, value in columns(grant).items() if name in names}
    is_open = (Keys.id == key_id, Keys.revoked_at.is_(None))
    async with database.begin() as connection:
        return bool((await connection.execute(update(Keys).where(*is_open).values(values or {"id": key_id}))).rowcount)


async def revoke(database: AsyncEngine, key_id: str) -> None:
    """End a key; one that has ended keeps its time."""
    now = datetime.now(UTC)
    async with database.begin() as connection:
        is_open = (Keys.id == key_id, Keys.revoked_at.is_(None))
        await connection.execute(update(Keys).where(*is_open).values(revoked_at=now))


async def exist(database: AsyncEngine) -> bool:
    """Whether there has ever been a key."""
    async with database.connect() as connection:
        return (await connection.execute(select(Keys.id).limit(1))).first() is not None


async def note_use(database: AsyncEngine, key_ids: Collection[str]) -> None:
    """Write down that these keys were used just now."""
    async with database.begin() as connection:
        await connection.execute(update(Keys).where(Keys.id.in_(key_ids)).values(last_used_at=datetime.now(UTC)))


def columns(grant: Grant) -> dict[str, Any]:
    """Write a grant as the table has it; the columns are its fields."""
    return {
        **vars(grant),
        "scopes": sorted(grant.scopes),
        "models": None if grant.models is None else sorted(grant.models),
        "budgets": [vars(budget) for budget in grant.budgets],
    }


def _key(row: Row[Columns]) -> Key:
    models = None if row.models is None else frozenset(row.models)
    limits = row.requests_per_minute, row.concurrent_streams
    budgets = tuple(Budget(**budget) for budget in row.budgets)
    grant = Grant(row.owner, frozenset(row.scopes), models, row.expires_at, *limits, budgets, row.log_content)
    return Key(row.id, row.digest, grant, row.created_at, row.last_used_at, row.revoked_at)
