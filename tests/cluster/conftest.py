"""Ray on one host, its Serve with two of the modalities of deploy/ray/serve.yaml, and a gateway before it.

Ray listens on every interface and leaves processes behind: all this runs in a network and a process namespace of its
own, which `make test` makes and which end with it.
"""

import fcntl
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
TASKS = ("text", "image")
OURS = "ours/pictures"
OWN_MODEL = f"""
[[models]]
id = "{OURS}"
task = "image"
folder = {{path = "nowhere"}}
tiny = {{recipe = "image"}}
defaults = {{size = "64x64", num_inference_steps = 2, guidance_scale = 7.5}}
"""
LONG = 480.0  # seconds after which something counts as hung: a process takes 15 to start, and minutes on busy cores
SERVE, GATEWAY, METRICS = 8000, 8100, 8200  # ports; nobody else is in the namespace
INTERFACE_UP, SET_FLAGS = 1, 0x8914


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + LONG
    while not is_so():
        assert time.monotonic() < give_up_at, "that never came true"
        time.sleep(0.2)


@dataclass(frozen=True)
class Cluster:
    """A running one.

    Args:
        ray: the environment of who talks to it.
    """

    ray: dict[str, str]
    gateway: str = f"http://127.0.0.1:{GATEWAY}"

    def serve(self, task: str) -> str:
        return f"http://127.0.0.1:{SERVE}/{task}"

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.gateway}/readyz", timeout=10).is_success
        except httpx.TransportError:
            return False

    def replica(self, task: str) -> psutil.Process | None:
        """The process that serves a modality."""
        name = f"ray::ServeReplica:{task}:"
        found = [each for each in psutil.process_iter() if "".join(each.cmdline()[:1]).startswith(name)]
        return found[0] if found else None

    def left(self, resource: str) -> float:
        """How much of a resource no process has been given."""
        ask = "import json, ray; ray.init(log_to_driver=False); print(json.dumps(ray.available_resources()))"
        said = subprocess.run(
            [sys.executable, "-c", ask], env=self.ray, capture_output=True, text=True, check=True, timeout=LONG
        )
        return float(json.loads(said.stdout.splitlines()[-1]).get(resource, 0))

    def counts(self, name: str, **labels: str) -> dict[str, float]:
        """A series of the workers, as Ray exports it, summed for each process."""
        families = text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{METRICS}/metrics", timeout=30).text)
        found: defaultdict[str, float] = defaultdict(float)
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == f"ray_{name}" and labels.items() <= sample.labels.items():
                found[sample.labels["WorkerId"]] += sample.value
        return dict(found)

    def count(self, name: str, **labels: str) -> float:
        """Likewise of all processes together."""
        return sum(self.counts(name, **labels).values())

    def row(self, request_id: str) -> dict[str, Any]:
        """What the usage log has of a request, once its receipt is in."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            rows = httpx.get(f"{self.gateway}/v1/usage", params={"limit": 1000}, timeout=30).json()["data"]
            found.extend(row for row in rows if row["request_id"] == request_id and row["run_seconds"] is not None)
            return bool(found)

        wait_until(is_there)
        return found[0]


def models_file(folder: Path) -> Path:
    """An operator's own model, for which the settings of one application alone make room."""
    file = folder / "models.toml"
    file.write_text(OWN_MODEL, encoding="utf-8")
    return file


def configuration(folder: Path, models: Path) -> Path:
    """What is deployed: the file of the documentation, with fewer modalities and on loopback.

    Two processes that make pictures fit on the GPU. There is none: Ray counts one, and models run on the CPU.
    """
    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text(encoding="utf-8"))
    config["http_options"] = {"host": "127.0.0.1", "port": SERVE}
    config["applications"] = [each for each in config["applications"] if each["name"] in TASKS]
    (image,) = (each for each in config["applications"] if each["name"] == "image")
    image["args"] |= {"target_ongoing_requests": 1, "num_gpus": 0.5}
    image["runtime_env"] = {"env_vars": {"ATELIER_MODELS_FILE": str(models)}}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14s", b"lo", INTERFACE_UP, b""))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        pytest.fail(
            "Ray listens on every interface: run these tests by `make test-cluster`, in a namespace of their own"
        )
    bring_loopback_up()
    folder = tmp_path_factory.mktemp("cluster")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "OTEL_", "RAY_"))}
    common = {**own, "ATELIER_INTERNAL_TOKEN": "of this test", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray = {
        **common,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "ATELIER_DATA_DIR": str(ROOT / ".atelier"),
        "ATELIER_RECEIPTS_URL": f"http://127.0.0.1:{GATEWAY}/internal/receipts",
    }
    urls = {f"ATELIER_{task.upper()}_URL": "" for task in ("audio", "video", "mesh")}
    urls |= {f"ATELIER_{task.upper()}_URL": f"http://127.0.0.1:{SERVE}/{task}" for task in TASKS}
    models = models_file(folder)
    gateway = {**common, **urls, "ATELIER_PORT": str(GATEWAY), "ATELIER_DATA_DIR": str(folder)}
    gateway["ATELIER_MODELS_FILE"] = str(models)
    head = ("ray", "start", "--head", "--block", "--num-cpus=8", "--num-gpus=1", "--object-store-memory=100000000")
    with ExitStack() as stack:

        def start(*command: str, environment: dict[str, str]) -> None:
            log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
            words = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
            process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=log, stderr=log)
            stack.callback(process.wait, LONG)
            stack.callback(process.terminate)

        start("python", "-m", "gateway", environment=gateway)
        start(*head, "--include-dashboard=false", f"--metrics-export-port={METRICS}", environment=ray)
        command = [
            str(Path(sys.executable).with_name("serve")),
            "run",
            "--non-blocking",
            str(configuration(folder, models)),
        ]
        address = {**ray, "RAY_ADDRESS": "127.0.0.1:6379"}
        wait_until(lambda: is_listening(6379))
        subprocess.run(command, env=address, cwd=ROOT, check=True, timeout=LONG)
        running = Cluster(address)
        wait_until(running.is_ready)
        yield running


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def client(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.gateway, timeout=LONG, trust_env=False) as http:
        yield http
