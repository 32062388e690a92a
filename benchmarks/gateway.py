"""What the gateway takes of a request: `python -m benchmarks.gateway`.

Ours, a relay that does nothing else, and LiteLLM's proxy take turns on one core, in front of the same model server that
does nothing; it and the callers have another core.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import uvloop

from benchmarks.callers import Seen, closed_loop, open_loop
from benchmarks.checkpoints import BENCH, ROOT
from benchmarks.servers import end, free_port, peer_python, wait_until_ready

LITELLM = "litellm[proxy]==1.106.2"
LITELLM_KEY = "sk-benchmark-0123456789"  # it wants one, and so it has to look at one, as we do
SERVER_CORE, CALLERS_CORE = 0, 1
NUM_CALLERS, NUM_STREAMS = 16, 8
NUM_WARM = 500
HALF_LOAD_SECONDS = 10.0
MAX_RATE = 1000.0  # requests a second that are sent one by one
MIB = 2**20


@dataclass(frozen=True)
class Kind:
    """A server: what starts it on a port in front of `upstream`, when it is ready, and what callers must send."""

    command: Callable[[int, str], tuple[str, ...]]
    ready_path: str
    environment: Callable[[int, str], Mapping[str, str]] = lambda port, upstream: {}
    key: Callable[[], str] = lambda: ""
    model: str = "tinyllama-1.1b-chat"


@dataclass
class Running:
    """A server that is ready."""

    kind: Kind
    port: int
    process: psutil.Process

    @property
    def cpu_seconds(self) -> float:
        """What it and its children have computed."""
        times = [process.cpu_times() for process in self._family]
        return sum(time.user + time.system for time in times)

    @property
    def memory(self) -> float:
        """MiB that are resident."""
        return sum(process.memory_info().rss for process in self._family) / MIB

    @property
    def _family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def request(self, **more: object) -> bytes:
        """Return a chat request as it is on the wire."""
        body = {"model": self.kind.model, "messages": [{"role": "user", "content": "What is two and two?"}], **more}
        content = json.dumps(body).encode()
        key = self.kind.key()
        head = (
            "POST /v1/chat/completions HTTP/1.1",
            f"host: 127.0.0.1:{self.port}",
            "content-type: application/json",
            f"content-length: {len(content)}",
            *([f"authorization: Bearer {key}"] if key else []),
        )
        return ("\r\n".join(head) + "\r\n\r\n").encode() + content


def ours() -> Kind:
    """Return our gateway, with all that is on by default, and a key where it wants one."""
    data_dir = BENCH / "gateway"
    key_file = data_dir / "admin.key"
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir(parents=True)

    def environment(port: int, upstream: str) -> Mapping[str, str]:
        others = {f"ATELIER_{task}_URL": "" for task in ("AUDIO", "IMAGE", "VIDEO", "MESH")}
        return {
            **others,
            "ATELIER_TEXT_URL": upstream,
            "ATELIER_PORT": str(port),
            "ATELIER_DATA_DIR": str(data_dir),
            "ATELIER_ADMIN_KEY_FILE": str(key_file),
        }

    return Kind(
        command=lambda port, upstream: (sys.executable, "-m", "gateway"),
        environment=environment,
        ready_path="/livez",
        key=lambda: key_file.read_text().strip() if key_file.exists() else "",
    )


def bare() -> Kind:
    """Return the relay that does nothing else."""
    return Kind(
        command=lambda port, upstream: (sys.executable, "-m", "benchmarks.bare_relay", str(port), upstream),
        ready_path="/readyz",
    )


def litellm() -> Kind:
    """Return LiteLLM's proxy, installed if it is not yet, with a key and without a database."""
    python = peer_python("litellm", (LITELLM,), shares_ours=False)
    config = BENCH / "litellm.yaml"

    def command(port: int, upstream: str) -> tuple[str, ...]:
        model = {"model": "openai/fake", "api_base": f"{upstream}/v1", "api_key": "none"}
        settings = {"model_list": [{"model_name": "fake", "litellm_params": model}]}
        config.write_text(json.dumps(settings))  # JSON is YAML
        program = str(python.with_name("litellm"))
        return (program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")

    return Kind(
        command=command,
        environment=lambda port, upstream: {
            "LITELLM_MASTER_KEY": LITELLM_KEY,
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        ready_path="/health/liveliness",
        key=lambda: LITELLM_KEY,
        model="fake",
    )


def direct() -> Kind:
    """Return the model server itself."""
    return Kind(
        command=lambda port, upstream: (sys.executable, "-m", "benchmarks.upstream", str(port)), ready_path="/readyz"
    )


KINDS: Mapping[str, Callable[[], Kind]] = {"ours": ours, "bare": bare, "litellm": litellm}


@contextmanager
def serving(name: str, kind: Kind, upstream: str, core: int) -> Iterator[Running]:
    """Start a server on a core of its own, and end it."""
    port, log = free_port(), BENCH / f"gateway-{name}.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ATELIER_", "LITELLM_"))}
    environment = {**inherited, **kind.environment(port, upstream)}
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603  our own command
            kind.command(port, upstream), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        psutil.Process(process.pid).cpu_affinity([core])  # and of what it starts
        wait_until_ready(process, f"http://127.0.0.1:{port}{kind.ready_path}", log)
        yield Running(kind, port, psutil.Process(process.pid))
    finally:
        end(process)


@dataclass(frozen=True)
class Figures:
    """Of one server in one round: milliseconds, requests and chunks a second, MiB."""

    cpu: float
    rate: float
    p99: float
    half_p99: float
    chunk_rate: float
    first_chunk: float
    memory: float


async def measure(server: Running, num_requests: int, half_rate: float | None) -> Figures:
    """Ask for JSON by 16 callers, at half the load, and for streams.

    Args:
        server: whom.
        num_requests: of the closed loop.
        half_rate: requests a second at half load; None: half of what this server does, as far as callers can ask.
    """
    request = server.request()
    await closed_loop(server.port, request, NUM_CALLERS, min(NUM_WARM, num_requests))
    began = server.cpu_seconds
    seen = await closed_loop(server.port, request, NUM_CALLERS, num_requests)
    cpu = 1000 * (server.cpu_seconds - began) / num_requests
    rate = half_rate or min(seen.rate / 2, MAX_RATE)
    dice = random.Random(1)
    gaps = [dice.expovariate(rate) for _ in range(int(rate * HALF_LOAD_SECONDS))]
    half = await open_loop(server.port, request, gaps)
    burst = await streams(server)
    paced = await streams(server, user="paced")
    return Figures(
        cpu=cpu,
        rate=seen.rate,
        p99=seen.quantile(0.99),
        half_p99=half.quantile(0.99),
        chunk_rate=sum(answer.num_pieces for answer in burst.answers) / burst.seconds,
        first_chunk=paced.quantile(0.5, of_first=True),
        memory=server.memory,
    )


async def streams(server: Running, **more: str) -> Seen:
    """Let callers follow streams."""
    return await closed_loop(server.port, server.request(stream=True, **more), NUM_STREAMS, 5 * NUM_STREAMS)


def compare(names: list[str], upstream: Running, rounds: int, num_requests: int) -> str:
    """Let all take turns, and say what came of it."""
    found: dict[str, list[Figures]] = {name: [] for name in ["direct", *names]}
    kinds = {name: KINDS[name]() for name in names}
    url = f"http://127.0.0.1:{upstream.port}"
    for name, kind in kinds.items():
        with serving(name, kind, url, SERVER_CORE):
            pass  # the first start of all makes databases and compiles
    for index in range(rounds):
        found["direct"].append(uvloop.run(measure(upstream, num_requests, None)))
        half_rate = None
        for name, kind in kinds.items():
            with serving(name, kind, url, SERVER_CORE) as server:
                number = num_requests if name != "litellm" else max(NUM_CALLERS, num_requests // 10)
                figures = uvloop.run(measure(server, number, half_rate if name == "bare" else None))
            half_rate = figures.rate / 2 if name == "ours" else half_rate
            found[name].append(figures)
            say(f"  round {index + 1}, {name}: {figures}")
    return table(found)


def table(found: Mapping[str, list[Figures]]) -> str:
    """Medians of the rounds."""
    lines = ["| server | CPU ms | requests/s | p99 ms | p99 at half load | SSE chunks/s | first chunk ms | MiB |"]
    lines.append("|-|-|-|-|-|-|-|-|")
    for name, rounds in found.items():
        cells = (statistics.median(values) for values in zip(*(vars(each).values() for each in rounds), strict=True))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(lines)


async def soak(server: Running, num_requests: int) -> str:
    """Say how memory grows."""
    lines, done = [f"at the start: {server.memory:.1f} MiB"], 0
    for target in (10_000, 100_000):
        if target <= num_requests:
            await closed_loop(server.port, server.request(), NUM_CALLERS, target - done)
            done = target
            lines.append(f"after {done} requests: {server.memory:.1f} MiB")
    return "\n".join(lines)


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure what was asked for."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    reader.add_argument("--servers", nargs="+", choices=list(KINDS), default=list(KINDS))
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--requests", type=int, default=10_000)
    reader.add_argument("--soak", type=int, default=0, help="only memory, after 10000 and (as many as that) 100000")
    options = reader.parse_args()
    BENCH.mkdir(parents=True, exist_ok=True)
    psutil.Process().cpu_affinity([CALLERS_CORE])
    with serving("upstream", direct(), "", CALLERS_CORE) as upstream:
        if options.soak:
            kind, url = ours(), f"http://127.0.0.1:{upstream.port}"
            with serving("ours", kind, url, SERVER_CORE):
                pass  # the first start of all makes the database
            with serving("ours", kind, url, SERVER_CORE) as server:
                say(uvloop.run(soak(server, options.soak)))
            return
        say(compare(options.servers, upstream, options.rounds, options.requests))


if __name__ == "__main__":
    main()
