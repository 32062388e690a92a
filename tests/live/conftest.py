"""The whole system as a user starts it: `atelier up` on free ports, over the tiny checkpoints."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

TASKS = ("text", "audio", "image", "video", "mesh")
TOKEN = {"x-atelier-token": "of-this-test"}  # what workers want to see of whoever asks them
MODELS_FILE = Path(__file__).with_name("models.toml")  # what the registry has none of
LONG = 180.0  # seconds after which a start or a stop counts as hung


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class System:
    """A running Atelier."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    data_dir: Path

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.ports['gateway']}"

    @property
    def studio(self) -> str:
        return f"http://127.0.0.1:{self.ports['ui']}"

    def worker(self, task: str) -> str:
        return f"http://127.0.0.1:{self.ports[task]}"

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; an `atelier up` that ends meanwhile is an error."""
        for _ in range(int(LONG / 0.1)):
            if is_so():
                return
            try:
                code = self.process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"atelier up ended with {code}")
        raise AssertionError("that never came true")

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.gateway}/readyz", timeout=10).is_success
        except httpx.TransportError:
            return False

    def lives(self) -> bool:
        """Whether gateway and studio answer, whatever the workers do."""
        try:
            answers = [httpx.get(f"{self.gateway}/livez"), httpx.get(f"{self.studio}/_stcore/health")]
        except httpx.TransportError:
            return False
        return all(answer.is_success for answer in answers)

    def count(self, task: str, name: str, **labels: str) -> float:
        """The sum of a worker's series `name` over all label sets that `labels` agree with."""
        text = httpx.get(f"{self.worker(task)}/metrics", timeout=30).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def started(
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, str],
    is_ready: Callable[[System], bool] = System.is_ready,
) -> Iterator[System]:
    data_dir = tmp_path_factory.mktemp("atelier")
    names = ("gateway", "ui", *TASKS)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")},
        "ATELIER_DATA_DIR": str(data_dir),
        "ATELIER_PORT": str(ports["gateway"]),
        "ATELIER_UI_PORT": str(ports["ui"]),
        "ATELIER_INTERNAL_TOKEN": TOKEN["x-atelier-token"],
        **{f"ATELIER_{task.upper()}_PORT": str(ports[task]) for task in TASKS},
        **settings,
    }
    with (data_dir / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        running = System(process, ports, data_dir)
        try:
            running.wait(lambda: is_ready(running))
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=LONG)
            finally:
                process.kill()


@pytest.fixture
def client(system: System) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=system.gateway, timeout=LONG, trust_env=False) as http:
        yield http
