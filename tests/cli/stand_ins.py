"""Programs that behave as the real ones do towards a supervisor: `python -m tests.cli.stand_ins NAME FOLDER`.

Each writes its process id into the folder, under its own name.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def note_pid(folder: Path, name: str) -> None:
    """Write the file at once whole: somebody waits for it."""
    import os

    partial = folder / f".{name}"
    partial.write_text(str(os.getpid()))
    partial.rename(folder / name)


def plain(folder: Path) -> None:
    """Ends when it is asked to."""
    note_pid(folder, "plain")
    time.sleep(600)


def stubborn(folder: Path) -> None:
    """Does not."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    note_pid(folder, "stubborn")
    time.sleep(600)


def failing(folder: Path) -> None:
    """Ends at once."""
    sys.exit(7)


def refusing(folder: Path) -> None:
    """Says what is wrong with its settings."""
    sys.exit("atelier: a setting is wrong")


def nested(folder: Path) -> None:
    """Works in a process of its own session, as `bentoml serve` does, and passes a request to end on to it."""
    inner = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.stand_ins", "plain", str(folder)], start_new_session=True
    )

    def end(*_: object) -> None:
        inner.terminate()
        inner.wait()
        sys.exit()

    signal.signal(signal.SIGTERM, end)
    note_pid(folder, "nested")
    time.sleep(600)


def nested_stubborn(folder: Path) -> None:
    """As `nested`, but neither of the two ends when asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-m", "tests.cli.stand_ins", "stubborn", str(folder)], start_new_session=True)
    note_pid(folder, "nested_stubborn")
    time.sleep(600)


PROGRAMS: dict[str, Callable[[Path], None]] = {
    program.__name__: program for program in (plain, stubborn, failing, refusing, nested, nested_stubborn)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]))
