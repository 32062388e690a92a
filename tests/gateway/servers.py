"""Servers that tests start for themselves: a Redis, in a folder and on a port of its own."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONG = 20.0  # seconds after which something counts as hung


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Wait until something listens there."""
    give_up_at = time.monotonic() + LONG
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < give_up_at, f"nothing listens on {port}"
            time.sleep(0.02)
        else:
            return


class RedisServer:
    """A real one, that can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        assert program, "these tests need redis-server (Debian: redis-server)"
        self._program = program
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        options = ("--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder))
        self._process = subprocess.Popen([self._program, *options], stdout=subprocess.DEVNULL)
        wait_for(self._port)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.stop()
