"""Servers that tests start for themselves, each in a folder and on a port of its own: Redis and Postgres."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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

    def hang(self) -> None:
        """Keep connections, and say nothing, until `go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

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


def postgres_program(name: str) -> str:
    """Debian keeps them in folders by version."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    assert found, f"these tests need {name} (Debian: postgresql)"
    return found


@contextmanager
def postgres_server() -> Iterator[str]:
    """A real one with nothing in it; gives its URL. It refuses to run as root: then it runs as nobody."""
    user = "nobody" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="atelier-postgres-") as name:
        folder, port = f"{name}/cluster", free_port()
        if user:
            shutil.chown(name, user)
        options: Any = {"user": user, "cwd": name, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        made = [postgres_program("initdb"), "-D", folder, "-U", "atelier", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, **options)
        settings = ("fsync=off", f"unix_socket_directories={name}", "listen_addresses=127.0.0.1", "max_connections=200")
        flags = [flag for setting in settings for flag in ("-c", setting)]
        server = subprocess.Popen([postgres_program("postgres"), "-D", folder, "-p", str(port), *flags], **options)
        try:
            wait_for(port)
            while subprocess.run([postgres_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
                time.sleep(0.02)  # it listens before it has started
            yield f"postgresql+asyncpg://atelier@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # ends connections too
            server.wait()
