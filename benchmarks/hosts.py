"""Hosts for benchmarks, on one machine: a network, a process and a mount namespace each, on a bridge that is theirs.

Root only. Everything ends with the program that made it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

NETWORK = "10.99.0"
HERE = f"{NETWORK}.254"  # where the program itself is
INSIDE = "--inside"
PRIVATE = "mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && mount -t tmpfs none /dev/shm"
APART = ("unshare", "--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child")


def go_inside(program: str) -> None:
    """Start a program, by its name as a module, anew in namespaces of its own with a bridge, unless this is there."""
    if INSIDE not in sys.argv:
        os.execvp(APART[0], [*APART, sys.executable, "-m", program, *sys.argv[1:], INSIDE])
    sys.argv.remove(INSIDE)
    for words in (
        "link set lo up",
        "link add bridge type bridge",
        f"addr add {HERE}/24 dev bridge",
        "link set bridge up",
    ):
        ip(words)


def ip(words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words.split()], check=True)


def kill(started: "subprocess.Popen[bytes]") -> None:
    """End by SIGKILL what was started on a host, which goes on."""
    for child in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)  # what started it there waits beside it
    started.wait()


class Host:
    """One of them; `address` is where others reach it."""

    def __init__(self, number: int) -> None:
        """Make the host with this number."""
        self.address = f"{NETWORK}.{number}"
        self._link = f"host{number}"
        self._root = subprocess.Popen([*APART, "sh", "-c", f"{PRIVATE} && ip link set lo up && exec sleep 1000000"])
        self._pid = self._first_process()
        ip(f"link add {self._link} type veth peer name eth0 netns {self._pid}")
        ip(f"link set {self._link} master bridge up")
        self._enter = ["nsenter", "--target", str(self._pid), "--net", "--pid", "--mount", "--wd=."]
        subprocess.run([*self._enter, "ip", "addr", "add", f"{self.address}/24", "dev", "eth0"], check=True)
        subprocess.run([*self._enter, "ip", "link", "set", "eth0", "up"], check=True)

    def _first_process(self) -> int:
        children = Path(f"/proc/{self._root.pid}/task/{self._root.pid}/children")
        while True:
            found = children.read_text().split()
            if found and Path(f"/proc/{found[0]}/comm").read_text() == "sleep\n":  # it has made what is private
                return int(found[0])
            time.sleep(0.05)

    def start(self, *command: str, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a program there, without this program's own settings."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "RAY_"))}
        with log.open("ab") as file:
            return subprocess.Popen([*self._enter, *command], env=own | environment, stdout=file, stderr=file)

    def cut(self) -> None:
        """Let nothing in or out."""
        ip(f"link set {self._link} down")

    def heal(self) -> None:
        """Undo that."""
        ip(f"link set {self._link} up")

    def kill(self) -> None:
        """End all its processes by SIGKILL, and the host."""
        self._root.kill()
        self._root.wait()
        subprocess.run(["ip", "link", "delete", self._link], stderr=subprocess.DEVNULL)
