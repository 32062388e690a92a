"""A folder that is whole or absent, whoever is killed while it is written; knows nothing of what is in it."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STAMP = ".stamp"


def is_fresh(folder: Path, stamp: str) -> bool:
    """Whether the folder was finished under this stamp."""
    try:
        return (folder / STAMP).read_bytes() == stamp.encode()
    except (FileNotFoundError, NotADirectoryError):
        return False


def fill(folder: Path, stamp: str, write: Callable[[Path], None]) -> Path:
    """Return the folder, written anew unless it is fresh.

    Args:
        folder: its siblings `.<name>.lock`, `.<name>.partial` and `.<name>.stale` belong to this function.
        stamp: what the contents depend on.
        write: fills an empty folder. When it raises, or the process dies in it, `folder` stays as it was.

    Raises:
        OSError: the disk is full or the parent cannot be written.
    """
    if is_fresh(folder, stamp):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(_sibling(folder, "lock")):
        if not is_fresh(folder, stamp):  # another process may have written it while this one waited
            with _scratch(_sibling(folder, "partial")) as partial:
                write(partial)
                (partial / STAMP).write_bytes(stamp.encode())
                _open_to_readers(partial)
                _put(partial, folder)
    return folder


def _sibling(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock, which the kernel gives back when the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Lend an empty folder, without what a killed process left in it."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """Let every user read what a library may have written for its owner alone."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _put(partial: Path, folder: Path) -> None:
    """Rename into place; whoever has files of the old folder open keeps them."""
    stale = _sibling(folder, "stale")
    shutil.rmtree(stale, ignore_errors=True)
    if folder.exists():
        folder.rename(stale)
    partial.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)
