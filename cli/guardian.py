"""Ends what a supervisor started once the supervisor is gone, also when it was killed; knows nothing else of it.

The supervisor writes `+pid` and `-pid` lines into a pipe, which ends when it does; this module, run as a process
beside it, reads them.
"""

import os
import subprocess
import sys
from contextlib import suppress

import psutil

from cli import family


class Guardian:
    """The supervisor's end of the pipe."""

    def __init__(self, grace_seconds: float) -> None:
        """Start the process, out of reach of what is sent to this one's group."""
        reader, self._writer = os.pipe()
        command = (sys.executable, "-m", "cli.guardian", str(grace_seconds))
        self._process = subprocess.Popen(command, stdin=reader, start_new_session=True)
        os.close(reader)

    def add(self, pid: int) -> None:
        """Have this child ended where the supervisor no longer can."""
        self._write(f"+{pid}\n")

    def remove(self, pid: int) -> None:
        """Forget a child that has ended: its number may become somebody else's."""
        self._write(f"-{pid}\n")

    def close(self) -> None:
        """Let the process do its work and end."""
        os.close(self._writer)
        self._process.wait()

    def _write(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it was killed; there is no second one
            os.write(self._writer, line.encode())


def main(grace_seconds: float) -> None:
    """Follow the list, then end what is on it; what is left after a while is killed."""
    children: dict[int, psutil.Process] = {}
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "-":
            children.pop(pid, None)
        else:
            with suppress(psutil.NoSuchProcess):
                children[pid] = psutil.Process(pid)
    members = [member for child in children.values() for member in (child, *family.descendants(child))]
    for child in children.values():
        family.terminate(child)
    _, left = psutil.wait_procs(members, timeout=grace_seconds)
    family.kill(left)


if __name__ == "__main__":
    main(float(sys.argv[1]))
