"""Files that are whole or not there, and never take another's place unasked; knows no server."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Annotated

import typer

from cli.errors import Refused

STDOUT = Path("-")
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def check_is_free(path: Path, *, force: bool = False) -> None:
    """Refuse before anything is made what could not be written after.

    Raises:
        Refused: there is a file, no such folder, or a terminal that would show bytes.
    """
    if path == STDOUT:
        if sys.stdout.isatty():
            raise Refused("this is no text, and standard output is a terminal; -o FILE names a file")
        return
    if path.is_dir():
        raise Refused(f"{path} is a folder; -o FILE names a file")
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent}")
    if path.exists() and not force:
        raise Refused(f"{path} is there already; --force replaces it, -o FILE names another")


@contextmanager
def written(path: Path, *, force: bool = False) -> Iterator[Callable[[bytes], object]]:
    """Give what writes into the file; it is there when all has been written, and not before.

    Raises:
        Refused: it cannot be written, or meanwhile there is another.
    """
    if path == STDOUT:
        yield _passed_on
        return
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file.write
        part.replace(path) if force else _put(part, path)
    except FileExistsError as error:
        raise Refused(f"{path} is there already; --force replaces it, -o FILE names another") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def save(path: Path, content: bytes, *, force: bool = False) -> None:
    """Write a file."""
    with written(path, force=force) as write:
        write(content)


def numbered(path: Path, number: int, of: int) -> Path:
    """The file's name, where there are several: `picture-2.png`."""
    return path if of == 1 or path == STDOUT else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _put(part: Path, path: Path) -> None:
    """Give it its name, unless another has it."""
    try:
        path.hardlink_to(part)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS or path.exists():
            raise
        part.rename(path)  # a file system without links, such as a stick's


def _passed_on(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def text_or_pipe(words: list[str] | None) -> str:
    """What the arguments say, and after it what is piped in.

    Raises:
        Refused: neither says anything.
    """
    piped = "" if sys.stdin is None or sys.stdin.isatty() else _read()
    text = "\n\n".join(part for part in (" ".join(words or ()), piped.strip()) if part)
    if not text:
        raise Refused("there is no text; give it as an argument, or pipe it in")
    return text


def _read() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise Refused("what is piped in is no text in UTF-8") from error


def read_picture(path: Path) -> bytes:
    """Read a file that is to be sent.

    Raises:
        Refused: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
