"""Files that are being written: whole or gone, also after a power cut; knows nothing of where they end up."""

import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.errors import ArtefactsUnavailable, StorageFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Draft:
    """A file that grows, in a folder of such; locked as long as its writer lives.

    What blocks belongs into a thread, one at a time; `discard` waits for the one that is in it.
    """

    def __init__(self, folder: Path) -> None:
        """Be no file yet; `folder` is made where it is absent."""
        self._folder = folder
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self.is_over = False
        self._file: int | None = None
        self.path = folder
        self.num_bytes = 0

    def write(self, piece: bytes) -> None:
        """Add `piece`, which may be empty; nothing where the draft has been discarded.

        Raises:
            StorageFull: there is no room.
            ArtefactsUnavailable: the disk fails, or is not to be written to.
        """
        with self._lock, room():
            if self.is_over:
                return
            if self._file is None:
                self.path, self._file = _create(self._folder)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._hash.update(piece)
            self.num_bytes += len(piece)

    def finish(self) -> str:
        """Bring all of it to the disk; return its SHA-256 in hexadecimal.

        Raises:
            StorageFull: there is no room.
            ArtefactsUnavailable: the disk fails.
        """
        with self._lock, room():
            if self._file is not None:
                os.fsync(self._file)
            return self._hash.hexdigest()

    def discard(self) -> None:
        """Delete the file, unless it has been renamed; any number of times."""
        with self._lock:
            self.is_over = True
            if self._file is not None:
                self.path.unlink(missing_ok=True)
                os.close(self._file)
                self._file = None


def _create(folder: Path) -> tuple[Path, int]:
    """Return a new file and its locked descriptor; again, where a sweep was quicker than the lock."""
    while True:
        with suppress(FileExistsError):  # `exist_ok` looks once more, and raises where the folder went away meanwhile
            folder.mkdir(parents=True)
        path = folder / secrets.token_hex(16)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the folder went away as the last draft in it did
            continue
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)


def sweep(folder: Path) -> int:
    """Delete the drafts whose writers are dead; return how many those were."""
    num_swept = 0
    for path in list(folder.glob("*")):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            num_swept += 1
    return num_swept


async def gathered(pieces: AsyncIterator[bytes], num_bytes: int) -> AsyncIterator[bytes]:
    """Yield `pieces` put together to at least `num_bytes`, but for the last, which may be empty."""
    waiting: list[bytes] = []
    num_waiting = 0
    async for piece in pieces:
        waiting.append(piece)
        num_waiting += len(piece)
        if num_waiting >= num_bytes:
            yield b"".join(waiting)
            waiting, num_waiting = [], 0
    yield b"".join(waiting)


@contextmanager
def room() -> Iterator[None]:
    """Say in our words that a disk takes nothing more.

    Raises:
        StorageFull: it is full.
        ArtefactsUnavailable: it fails otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            said = "there is no room left for the result; ask for less, or the operator to make room"
            raise StorageFull(said) from error
        raise ArtefactsUnavailable(f"the result cannot be written: {error.strerror}") from error
