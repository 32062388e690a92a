"""The key that the operator begins with, and whether the gateway may start without one."""

import logging
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.callers import SCOPES
from gateway.errors import Misconfigured
from gateway.keys import store
from gateway.keys.schema import Grant, KeyText

logger = logging.getLogger("atelier.gateway")

OWNER = "operator"


async def check_keys(database: AsyncEngine, admin_key_file: Path | None, *, is_loopback: bool) -> None:
    """See to it that strangers find a closed door.

    Args:
        database: with the keys.
        admin_key_file: holds the operator's key; written where it is absent.
        is_loopback: whether only this machine can reach the gateway.

    Raises:
        Misconfigured: others could reach it, and there is no key; or the file is of no use.
    """
    if admin_key_file is not None:
        await admit_operator(database, admin_key_file)
    elif not is_loopback and not await store.exist(database):
        raise Misconfigured(
            "ATELIER_HOST lets other machines in, and there is no key yet: set ATELIER_ADMIN_KEY_FILE to the path "
            "of a file, and the first key is written there"
        )


async def admit_operator(database: AsyncEngine, file: Path) -> None:
    """Store the key in `file`, with all scopes, where it is not stored yet."""
    text = read(file)
    key = await store.get(database, text.id)
    if key is None:
        try:
            key = await store.add(database, text, Grant(OWNER, SCOPES))
        except IntegrityError:  # another gateway has just done it
            key = await store.get(database, text.id)
    if key is None or key.digest != text.digest:
        raise Misconfigured(f"ATELIER_ADMIN_KEY_FILE: {file} holds another secret than the stored key of this id")
    if key.revoked_at is not None:
        raise Misconfigured(f"ATELIER_ADMIN_KEY_FILE: the key in {file} is revoked; without the file a new one is made")


def read(file: Path) -> KeyText:
    """Return the key in `file`, which is made where it is absent."""
    try:
        if not file.exists():
            write(file)
        text = KeyText.read(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise Misconfigured(f"ATELIER_ADMIN_KEY_FILE: {file} cannot be read or written") from error
    if text is None:
        raise Misconfigured(f"ATELIER_ADMIN_KEY_FILE: {file} holds no key; without the file one is made")
    return text


def write(file: Path) -> None:
    """Make a key that only this user can read; of two gateways that begin at once, one makes it."""
    with NamedTemporaryFile("w", dir=file.parent, encoding="ascii") as new:  # only its owner may read it
        new.write(f"{KeyText.new()}\n")
        new.flush()
        try:
            os.link(new.name, file)  # whole or not at all
        except FileExistsError:
            return
    logger.info("the first admin key is in %s", file)
