"""Atelier as a user of docker-compose.yml has it: a clone, the secrets, `docker compose up --wait`."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compose.engine import Engine, NoEngine, make_base, running_engine
from tests.live.conftest import free_ports

ROOT = Path(__file__).parents[2]
FILES = "docker-compose.yml:tests/compose/engine.yml"
TORCH = "torch==2.13.0"
LONG = 180.0  # seconds after which something counts as hung
NONE = "NO DOCKER ENGINE: docker-compose.yml WAS NOT TRIED, NOR WERE ITS IMAGES BUILT"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.compose)


@dataclass(frozen=True)
class Composed:
    """A running Atelier.

    Args:
        engine: that it runs on.
        folder: the clone.
        ports: of the gateway and the studio.
        said: what making the secrets printed.
    """

    engine: Engine
    folder: Path
    ports: tuple[int, int]
    said: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def key(self) -> str:
        return (self.folder / "secrets" / "admin_key").read_text().strip()

    def compose(self, *arguments: str, **variables: str) -> str:
        return self.engine.docker("compose", *arguments, folder=self.folder, **self.settings, **variables)

    @property
    def settings(self) -> dict[str, str]:
        gateway, ui = map(str, self.ports)
        return {"ATELIER_PORT": gateway, "ATELIER_UI_PORT": ui, "COMPOSE_FILE": FILES, "OMP_NUM_THREADS": "1"}

    def run(self, commands: str) -> None:
        """Run lines of a page as whoever reads it does."""
        self.engine.run("sh", "-e", "-c", commands, folder=self.folder, **self.settings)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", service).split()

    def container(self, service: str) -> str:
        (found,) = self.containers(service)
        return found

    def inspect(self, service: str, template: str) -> str:
        return self.engine.docker("inspect", "--format", template, self.container(service)).strip()

    def wait(self, is_so: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + LONG
        while not is_so():
            assert time.monotonic() < give_up_at, self.compose("logs", "--tail", "20")
            time.sleep(0.2)

    def answers(self, path: str, **options: Any) -> int:
        """The status of an answer; 0: there was none."""
        try:
            asked = httpx.get(f"{self.url}{path}", headers={"x-api-key": self.key}, timeout=LONG, **options)
        except httpx.TransportError:
            return 0
        return asked.status_code


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Skipping is the one way to let the rest go on where there is none; the summary of the run says it aloud."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(running_engine())
        except NoEngine as error:
            pytest.skip(f"{NONE}: {error}")
        make_base(running)
        yield running


@pytest.fixture(scope="session")
def composed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    folder = tmp_path_factory.mktemp("clone")
    clone(folder)
    wheels = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "wheels"), TORCH]
    subprocess.run(wheels, check=True)
    secrets = subprocess.run(
        [sys.executable, "deploy/compose.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    gateway, ui = free_ports(2)
    running = Composed(engine, folder, (gateway, ui), secrets.stdout)
    try:
        running.compose("config", "--quiet")
        running.compose("build", "postgres", "redis")
        running.compose("up", "--build", "--detach", "--wait", "--wait-timeout", str(int(LONG)))
        yield running
    finally:
        running.compose("down", "--volumes", "--timeout", "5")


def clone(folder: Path) -> None:
    """Copy what is, or is about to be, in the repository."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, folder / name)


@pytest.fixture(scope="session")
def client(composed: Composed) -> Iterator[httpx.Client]:
    """Asks with the operator's key."""
    with httpx.Client(
        base_url=composed.url, headers={"x-api-key": composed.key}, timeout=LONG, trust_env=False
    ) as http:
        yield http
