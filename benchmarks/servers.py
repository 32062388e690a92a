"""The servers that are compared: how each is started on loopback, asked and ended; one runs at a time."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil

from benchmarks.checkpoints import BENCH, ROOT, Checkpoint
from benchmarks.painter import CHECKPOINT_VARIABLE, Order

LITSERVE = "litserve==0.2.19"
PEERS = BENCH / "peers"  # each has an environment of its own
START_SECONDS = 180.0
END_SECONDS = 10.0
QUEUE_SIZE = "900"  # as long as it may be: nobody is refused, here or at the peers
THREADS = MappingProxyType({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})
TIMEOUT = httpx.Timeout(None, connect=10)


@dataclass(frozen=True)
class Kind:
    """A server.

    Args:
        command: what starts it on a port.
        environment: variables, given the checkpoint.
        ready_path: answers with success when pictures can be asked for.
        path: where they are asked for.
        body: what is sent for an order.
        picture: the PNG in base64, out of the answer.
    """

    name: str
    command: Callable[[int], tuple[str, ...]]
    environment: Callable[[Checkpoint], Mapping[str, str]]
    ready_path: str
    path: str
    body: Callable[[Order], Any]
    picture: Callable[[Any], str]


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    kind: Kind
    url: str
    client: httpx.AsyncClient = field(default_factory=lambda: make_client())

    async def draw(self, order: Order) -> bytes:
        """Return the PNG.

        Raises:
            httpx.HTTPError: there was none.
        """
        answer = await self.client.post(self.url + self.kind.path, json=self.kind.body(order))
        return base64.b64decode(self.kind.picture(answer.raise_for_status().json()))


def make_client() -> httpx.AsyncClient:
    """Return a client that holds nothing back."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    return httpx.AsyncClient(timeout=TIMEOUT, limits=limits, trust_env=False)


def bentoml_serve(target: str) -> Callable[[int], tuple[str, ...]]:
    """Return what starts a BentoML service, as `atelier up` does."""

    def command(port: int) -> tuple[str, ...]:
        options = ("--host", "127.0.0.1", "--port", str(port), "--timeout-keep-alive", "75", "--working-dir", str(ROOT))
        return (sys.executable, "-m", "bentoml", "serve", target, *options)

    return command


def bentoml_environment(name: str) -> dict[str, str]:
    """Return what `atelier up` sets for BentoML; every service needs a home of its own."""
    home = BENCH / "bentoml" / name
    home.mkdir(parents=True, exist_ok=True)
    return {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_CONTAINERIZED": "true"}


def ours_environment(checkpoint: Checkpoint) -> dict[str, str]:
    """Let the worker find the checkpoint where it looks for the tiny one."""
    return {
        **bentoml_environment("ours"),
        "ATELIER_DATA_DIR": str(checkpoint.data_dir),
        "ATELIER_PROFILE": "tiny",
        "ATELIER_DEVICE": "cpu",
        "ATELIER_QUEUE_SIZE": QUEUE_SIZE,
    }


def ours() -> Kind:
    """Return the image worker."""
    return Kind(
        name="ours",
        command=bentoml_serve("services.image.service:ImageService"),
        environment=ours_environment,
        ready_path="/readyz",
        path="/v1/images/generations",
        body=asdict,
        picture=lambda answer: str(answer["data"][0]["b64_json"]),
    )


def bentoml_peer(is_uncorked: bool) -> Kind:
    """Return BentoML's own batching.

    Args:
        is_uncorked: without the delays by which it hopes to gather more.
    """
    name = "bentoml-uncorked" if is_uncorked else "bentoml"
    uncorked = {"BENCH_UNCORKED": "1"} if is_uncorked else {}
    return Kind(
        name=name,
        command=bentoml_serve("benchmarks.peer_bentoml:Peer"),
        environment=lambda checkpoint: {
            **bentoml_environment(name),
            **uncorked,
            CHECKPOINT_VARIABLE: str(checkpoint.folder),
        },
        ready_path="/readyz",
        path="/draw",
        body=lambda order: [asdict(order)],
        picture=lambda answer: str(answer[0]["png"]),
    )


def litserve_peer(batch_timeout: float) -> Kind:
    """Return LitServe's batching, installed if it is not yet.

    Args:
        batch_timeout: seconds that the first of a batch waits for others.
    """
    python = peer_python("litserve", (LITSERVE,))
    return Kind(
        name="litserve",
        command=lambda port: (str(python), "-m", "benchmarks.peer_litserve", str(port), str(batch_timeout)),
        environment=lambda checkpoint: {CHECKPOINT_VARIABLE: str(checkpoint.folder)},
        ready_path="/health",
        path="/predict",
        body=asdict,
        picture=lambda answer: str(answer["png"]),
    )


def peer_python(name: str, requirements: tuple[str, ...], *, shares_ours: bool = True) -> Path:
    """Return the Python of an environment that has a peer besides all that ours has, made when it is missing.

    Torch is 700 MB: ours is used through a line in a `.pth` file, and pip installs what is not there.

    Args:
        name: of the peer.
        requirements: what pip is told.
        shares_ours: whether it has ours at all.
    """
    folder = PEERS / name
    python, stamp, wanted = folder / "bin" / "python", folder / ".installed", "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run((sys.executable, "-m", "venv", "--clear", str(folder)), check=True)  # noqa: S603  our own words
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    if shares_ours:
        (folder / "lib" / version / "site-packages" / "ours.pth").write_text(f"{packages}\n")
    pip = (str(python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check")
    subprocess.run((*pip, *requirements), check=True)  # noqa: S603  our own words
    stamp.write_text(wanted)
    return python


@contextmanager
def serving(kind: Kind, checkpoint: Checkpoint) -> Iterator[Server]:
    """Start a server in a process of its own, on one thread, wait until it is ready, and end it and what it started.

    Raises:
        SystemExit: it does not become ready; its log is named.
    """
    port = free_port()
    log = BENCH / f"{kind.name}.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "BENTOML_"))}
    environment = {**inherited, "HF_HUB_OFFLINE": "1", **THREADS, **kind.environment(checkpoint)}
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603  our own command
            kind.command(port), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, url + kind.ready_path, log)
        yield Server(kind, url)
    finally:
        end(process)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Ask until the answer is a success."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=2, trust_env=False).is_success:
                return
        except httpx.TransportError:  # BentoML lets connections hang while it loads
            pass
        time.sleep(0.2)
    raise SystemExit(f"{' '.join(map(str, process.args))} does not become ready; {log} says why")  # type: ignore[arg-type]


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its descendants, each by its own number."""
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    process.send_signal(signal.SIGINT)  # which LitServe heeds at once, other than SIGTERM
    _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
    for straggler in alive:
        straggler.kill()
    psutil.wait_procs(alive, timeout=END_SECONDS)
    process.wait()
