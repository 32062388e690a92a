"""A process with all that it and its descendants have started; any of them may be gone at any time."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return what the process has started; nothing where it is gone."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still runs; one that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def terminate(process: psutil.Process) -> None:
    """Ask the process to end."""
    with suppress(psutil.NoSuchProcess):
        process.terminate()


def kill(processes: Iterable[psutil.Process]) -> None:
    """End the processes at once, each after what it has started."""
    for process in processes:
        for member in (*descendants(process), process):
            with suppress(psutil.NoSuchProcess):
                member.kill()
