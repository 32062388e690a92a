"""Where results are kept: a folder, or a bucket of an S3; knows neither jobs nor who may read what.

An artefact is named `job id/sha256`. It appears under this name when it is whole, and never changes: the same content
written again, by a durable step that is repeated, is no second file and no error.
"""

import asyncio
import logging
import os
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from gateway.artefacts.drafts import Draft, gathered, sweep
from gateway.errors import ArtefactsUnavailable, Misconfigured, NoSuchArtefact

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult  # which are not there at runtime

DRAFTS = ".drafts"  # in the folder
PIECE = 256 * 1024  # bytes that are written or read at a time
PART = 8 * 1024 * 1024  # bytes of what a bucket gets at a time; an upload has up to 10,000 such
MAX_PARTS = 2  # under way at once, and so in memory
PATIENCE = timedelta(seconds=60)  # for a bucket that does not answer
JOB_ID = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

logger = logging.getLogger("atelier.artefacts")


@dataclass(frozen=True)
class Artefact:
    """A file that is kept; whoever has written it keeps this, as the store does not."""

    key: str
    """`job id/sha256`."""
    sha256: str
    """Hexadecimal."""
    num_bytes: int
    media_type: str


class Artefacts:
    """The store; may be used by any number of gateways at once."""

    def __init__(self, store: LocalStore | S3Store, drafts: Path) -> None:
        """Keep in `store` what is written in the folder `drafts` first: `open` makes one."""
        self._store = store
        self._drafts = drafts

    @classmethod
    def open(cls, url: str, folder: Path) -> "Artefacts":
        """Open the store, and delete what writers that are dead have left.

        Args:
            url: `s3://bucket` or `s3://bucket/prefix`, where endpoint and credentials come from `AWS_*` variables; a
                path or a `file://` URL; empty: `folder`.
            folder: of what is kept, or else of what is being written.

        Raises:
            Misconfigured: it cannot be used.
        """
        parts = urlsplit(url)
        if parts.scheme == "s3":
            if not parts.netloc:
                raise Misconfigured("ATELIER_ARTEFACTS_URL: must name a bucket, such as s3://bucket/prefix")
            opened = cls(_bucket(url), folder / DRAFTS)
        elif parts.scheme in {"", "file"}:
            kept = Path(parts.path) if url else folder
            opened = cls(_folder(kept), kept / DRAFTS)
        else:
            raise Misconfigured("ATELIER_ARTEFACTS_URL: must be a path or s3://bucket/prefix")
        opened.sweep()
        return opened

    def sweep(self) -> int:
        """Delete what writers that are dead have left on this machine; return how many files those were.

        What they have left of uploads to a bucket is the bucket's to delete, by a lifecycle rule.
        """
        return sweep(self._drafts)

    async def put(self, job_id: str, pieces: AsyncIterator[bytes], media_type: str) -> Artefact:
        """Keep what `pieces` come to, once they have ended; if they fail, nothing.

        Memory does not grow with the number of pieces.

        Raises:
            StorageFull: there is no room; nothing is left behind.
            ArtefactsUnavailable: the bucket does not answer, or refuses; or the disk does.
            ValueError: the id could not be a folder's name.
        """
        check_id(job_id)
        draft = Draft(self._drafts)
        try:
            async for piece in gathered(pieces, PIECE):
                await asyncio.to_thread(draft.write, piece)
            if isinstance(self._store, LocalStore):
                return await asyncio.to_thread(publish, self._store, draft, job_id, media_type)
            artefact = named(draft, await asyncio.to_thread(draft.finish), job_id, media_type)
            await self._upload(draft, artefact)
            return artefact
        finally:
            if not draft.is_over:
                with anyio.CancelScope(shield=True):
                    await asyncio.to_thread(draft.discard)

    async def delete(self, job_id: str) -> None:
        """Delete all artefacts of a job; there may be none.

        Raises:
            ArtefactsUnavailable: the store does not answer, or refuses.
            ValueError: the id could not be a folder's name.
        """
        check_id(job_id)
        try:
            async for page in obstore.list(self._store, job_id):
                for found in page:
                    await self._delete(found["path"])
        except BaseError as error:
            raise unavailable(error) from error

    async def kept(self) -> dict[str, int]:
        """The jobs that have files, and the bytes of those.

        Raises:
            ArtefactsUnavailable: the store does not answer, or refuses.
        """
        found: Counter[str] = Counter()
        try:
            async for page in obstore.list(self._store):
                for each in page:
                    found[each["path"].partition("/")[0]] += each["size"]
        except BaseError as error:
            raise unavailable(error) from error
        del found[DRAFTS]
        return found

    async def presigned(self, artefact: Artefact, expires_in: int) -> str | None:
        """Return a URL by which anybody may read the artefact for `expires_in` seconds; None: the store has no such.

        Raises:
            ArtefactsUnavailable: there are no credentials to sign with.
        """
        if isinstance(self._store, LocalStore):
            return None
        try:
            return await obstore.sign_async(self._store, "GET", artefact.key, timedelta(seconds=expires_in))
        except BaseError as error:
            raise unavailable(error) from error

    async def read(self, artefact: Artefact, part: range) -> AsyncGenerator[bytes, None]:
        """Open `part` of the bytes; they are read as they are iterated over.

        Raises:
            NoSuchArtefact: it is not there any more.
            ArtefactsUnavailable: the store does not answer, or refuses.
        """
        if not part:  # which no store has a range for
            await self.check_has(artefact)
            return _nothing()
        try:
            options: GetOptions = {"range": (part.start, part.stop)}
            found = await obstore.get_async(self._store, artefact.key, options=options)
        except FileNotFoundError as error:
            raise gone() from error
        except BaseError as error:
            raise unavailable(error) from error
        return _bytes_of(found)

    async def check_has(self, artefact: Artefact) -> None:
        """Look whether it is there.

        Raises:
            NoSuchArtefact: it is not there any more.
            ArtefactsUnavailable: the store does not answer, or refuses.
        """
        try:
            if not await self._has(artefact.key):
                raise gone()
        except BaseError as error:
            raise unavailable(error) from error

    async def _upload(self, draft: Draft, artefact: Artefact) -> None:
        """Let the finished draft appear in the bucket."""
        try:
            if not await self._has(artefact.key):
                await obstore.put_async(
                    self._store,
                    artefact.key,
                    draft.path,
                    attributes={"Content-Type": artefact.media_type},
                    chunk_size=PART,
                    max_concurrency=MAX_PARTS,
                )
        except (BaseError, FileNotFoundError) as error:  # there is no such bucket
            raise unavailable(error) from error

    async def _has(self, key: str) -> bool:
        try:
            await obstore.head_async(self._store, key)
        except FileNotFoundError:
            return False
        return True

    async def _delete(self, key: str) -> None:
        with suppress(FileNotFoundError):  # somebody else was quicker
            await obstore.delete_async(self._store, key)


def publish(store: LocalStore, draft: Draft, job_id: str, media_type: str) -> Artefact:
    """Finish the draft, and let it appear in the folder; all at once, as each change of threads takes its time."""
    artefact = named(draft, draft.finish(), job_id, media_type)
    try:
        obstore.rename(store, f"{DRAFTS}/{draft.path.name}", artefact.key, overwrite=False)
        sync_folder(draft.path.parents[1] / artefact.key)
    except AlreadyExistsError:
        pass  # the same bytes, as the name says
    except (BaseError, FileNotFoundError) as error:
        raise unavailable(error) from error
    draft.discard()
    return artefact


def named(draft: Draft, sha256: str, job_id: str, media_type: str) -> Artefact:
    """Name what is kept."""
    return Artefact(f"{job_id}/{sha256}", sha256, draft.num_bytes, media_type)


def check_id(job_id: str) -> None:
    """Refuse what could lead out of a folder.

    Raises:
        ValueError: it could.
    """
    if not JOB_ID.fullmatch(job_id):
        raise ValueError("a job's id consists of letters, digits, _ and -")


def gone() -> NoSuchArtefact:
    """What is said of a file that has been deleted."""
    return NoSuchArtefact("this file is not kept any more")


def unavailable(error: Exception) -> ArtefactsUnavailable:
    """What is said of a store that fails; its own words name hosts and paths: they are for the log."""
    logger.warning("the store of artefacts: %s", str(error).partition("\n")[0])
    return ArtefactsUnavailable("the store of results does not answer; come back")


def sync_folder(file: Path) -> None:
    """Bring the name of `file` to the disk, unless it has been deleted already."""
    for folder in file.parents[:2]:
        if not folder.exists():
            return
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


async def _nothing() -> AsyncGenerator[bytes, None]:
    for piece in tuple[bytes, ...]():
        yield piece


async def _bytes_of(found: "GetResult") -> AsyncGenerator[bytes, None]:
    async for piece in found.stream(min_chunk_size=PIECE):
        yield bytes(piece)


def _folder(path: Path) -> LocalStore:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return LocalStore(path.absolute(), automatic_cleanup=True)
    except (OSError, BaseError) as error:
        raise Misconfigured(f"ATELIER_ARTEFACTS_URL: the folder {path} cannot be made or read: {error}") from error


def _bucket(url: str) -> S3Store:
    try:
        return S3Store.from_url(url, retry_config={"max_retries": 5, "retry_timeout": PATIENCE})
    except (BaseError, ValueError) as error:
        raise Misconfigured(f"ATELIER_ARTEFACTS_URL: {url} cannot be opened: {error}") from error
