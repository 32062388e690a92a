"""Five models in one image worker with room for two: what a cold model costs, who waits for how many swaps, and memory.

`python -m benchmarks.models`: installed, nothing else running. Needs 1.5 GB in `.atelier/bench`.
"""

import asyncio
import base64
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints import BENCH, Checkpoint
from benchmarks.servers import Kind, Server, ours, ours_environment, serving

WIDE = Checkpoint("wide", 64, (64, 128, 256, 512))  # 48 M parameters: weights that count beside the libraries
MODELS = ("tiny-sd", "second", "third", "fourth", "fifth")  # the first has the id of ours, and takes its place
ROOM = 2
NUM_REQUESTS = 200
NUM_CALLERS = 12  # who send the next as soon as they have the last
NUM_ROUNDS = 10
NUM_STARTS = 3
STEPS = 2
SAMPLE_SECONDS = 0.02
WRITE = sys.stdout.write


def build() -> Path:
    """Return a models file with five models of one architecture, each with weights of its own."""
    folder = WIDE.build()
    root = BENCH / f"{WIDE.data_dir.name}-five"
    file = root / "models.toml"
    if file.exists():
        return file
    for number, name in enumerate(MODELS, start=1):
        shutil.copytree(folder, root / name, dirs_exist_ok=True)
        [weights] = (root / name / "unet").glob("*.safetensors")
        changed = {key: tensor * (1 - 0.02 * number) for key, tensor in load_file(weights).items()}
        save_file(changed, weights, metadata={"format": "pt"})
    entries = (f'[[models]]\nid = "{name}"\ntask = "image"\n[models.folder]\npath = "{name}"\n' for name in MODELS)
    file.write_text("\n".join(entries), encoding="utf-8")
    return file


def worker(file: Path, **settings: Any) -> Kind:
    """Our image worker with these models."""
    named = {f"ATELIER_{name.upper()}": str(value) for name, value in settings.items()}

    def environment(checkpoint: Checkpoint) -> Mapping[str, str]:
        return {**ours_environment(checkpoint), "ATELIER_MODELS_FILE": str(file), **named}

    return replace(ours(), environment=environment)


async def draw(server: Server, model: str, seed: int = 0) -> tuple[float, str]:
    """Return seconds, and the PNG in base64."""
    body = {"prompt": "a lighthouse", "model": model, "seed": seed, "size": WIDE.size_name, "guidance_scale": 5.0}
    began = time.monotonic()
    answer = await server.client.post(server.url + server.kind.path, json={**body, "num_inference_steps": STEPS})
    return time.monotonic() - began, answer.raise_for_status().json()["data"][0]["b64_json"]


async def tell(server: Server, model: str, what: str, until: str) -> None:
    """Have a model loaded or unloaded, and wait until it is."""
    (await server.client.post(f"{server.url}/v1/models/{model}/{what}", json={})).raise_for_status()
    while (await states(server))[model]["state"] != until:  # noqa: ASYNC110  another process's
        await asyncio.sleep(0.01)


async def states(server: Server) -> dict[str, Any]:
    """How the models are."""
    listed = (await server.client.get(f"{server.url}/v1/models")).raise_for_status().json()["data"]
    return {each["id"]: each for each in listed}


@dataclass
class Peak:
    """The most memory that a process has held, in bytes; a sample every few milliseconds."""

    process: psutil.Process
    num_bytes: int = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch on a thread of its own."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(SAMPLE_SECONDS):
                self.num_bytes = max(self.num_bytes, self.process.memory_info().rss)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def the_worker() -> psutil.Process:
    """The process that has the models: of those that this one has started, the largest."""
    return max(psutil.Process().children(recursive=True), key=lambda each: each.memory_info().rss)


async def arriving(server: Server, seconds: float) -> list[float]:
    """Return the latencies of requests that come at random, one in `seconds` on average."""
    draws = random.Random(1)

    async def ask(at: float, model: str) -> float:
        await asyncio.sleep(at)
        return (await draw(server, model))[0]

    at, asked = 0.0, []
    for _ in range(NUM_REQUESTS):
        at += draws.expovariate(1 / seconds)
        asked.append(ask(at, draws.choice(MODELS)))
    return list(await asyncio.gather(*asked))


async def pressing(server: Server) -> tuple[list[float], dict[tuple[str, int], str]]:
    """Return the latencies of callers who never rest, and what was drawn."""
    draws, latencies = random.Random(2), list[float]()
    pictures: dict[tuple[str, int], str] = {}

    async def ask() -> None:
        for _ in range(NUM_REQUESTS // NUM_CALLERS):
            model, seed = draws.choice(MODELS), draws.randrange(5)
            seconds, pictures[model, seed] = await draw(server, model, seed)
            latencies.append(seconds)

    await asyncio.gather(*(ask() for _ in range(NUM_CALLERS)))
    return latencies, pictures


@dataclass
class Traffic:
    """What has come of requests, and from swap to swap how long it took meanwhile."""

    name: str
    began: float = field(default_factory=time.monotonic)
    num_loads: int = field(default_factory=lambda: loads())

    def show(self, latencies: list[float], warm: float) -> None:
        """Write how long requests waited; a swap here is the time from one load to the next, forwards included."""
        num_loads = loads() - self.num_loads
        between = (time.monotonic() - self.began) / num_loads
        waits = sorted(max(0.0, seconds - warm) for seconds in latencies)
        p99 = waits[int(0.99 * (len(waits) - 1))]
        WRITE(f"{self.name}: {len(waits)} requests, {num_loads} loads, one in {between:.2f} s; waits: ")
        for told, wait in (("median", statistics.median(waits)), ("p99", p99), ("most", waits[-1])):
            WRITE(f"{told} {wait:.2f} s, {wait / between:.1f} of that; ")
        WRITE("\n")


def loads() -> int:
    """How often a model has been loaded, by the worker's log."""
    return (BENCH / f"{ours().name}.log").read_text(encoding="utf-8", errors="replace").count(" is loaded after ")


async def measure(server: Server, starts: float, expected: dict[tuple[str, int], str]) -> None:
    """Measure a worker with room for two."""
    process = the_worker()
    for model in MODELS:
        await tell(server, model, "load", "ready")
    size = (await states(server))[MODELS[0]]["num_bytes"]
    warm, cold = list[float](), list[float]()
    for number in range(NUM_ROUNDS):
        model = MODELS[number % len(MODELS)]
        cold.append((await draw(server, model))[0])
        warm.append((await draw(server, model))[0])
    swap = statistics.median(cold) - statistics.median(warm)
    WRITE(f"{size / 1e6:.0f} MB of weights each; warm {statistics.median(warm):.3f} s, ")
    WRITE(f"cold {statistics.median(cold):.3f} s: a swap takes {swap:.3f} s, a restart {starts:.1f} s, ")
    WRITE(f"{starts / swap:.0f} times as long\n")
    for model in MODELS:
        await tell(server, model, "unload", "cold")
    base, peak = process.memory_info().rss, Peak(process)
    with peak.watched():
        usual = statistics.median(warm)
        traffic = Traffic(f"one request in {usual + swap:.2f} s")
        traffic.show(await arriving(server, usual + swap), usual)
        traffic = Traffic(f"{NUM_CALLERS} callers without rest")
        latencies, pictures = await pressing(server)
        traffic.show(latencies, usual)
    grown = peak.num_bytes - base
    WRITE(f"memory: {base / 1e6:.0f} MB without models, {grown / 1e6:.0f} MB more at most: ")
    WRITE(f"{grown / (ROOM * size):.2f} of what {ROOM} models take\n")
    off = max(furthest(pictures[key], expected[key]) for key in pictures)
    WRITE(f"{sum(pictures[key] == expected[key] for key in pictures)} of {len(pictures)} pictures are those of ")
    WRITE(f"workers with one model each to the bit, all others within {off} of 255\n")


def furthest(picture: str, other: str) -> int:
    """Return by how much two PNGs in base64 differ where they do most."""
    values, others = (np.asarray(Image.open(BytesIO(base64.b64decode(each)))).astype(int) for each in (picture, other))
    return int(np.abs(values - others).max())


async def start_once(kind: Kind) -> float:
    """Return seconds from the start of a process to its first picture."""
    began = time.monotonic()
    with serving(kind, WIDE) as server:
        await draw(server, MODELS[0])
        return time.monotonic() - began


async def drawn_alone(file: Path) -> dict[tuple[str, int], str]:
    """Return what each model draws where it is the only one that is ever in memory, one request at a time."""
    pictures = {}
    for model in MODELS:
        with serving(worker(file, max_models=1), WIDE) as server:
            for seed in range(5):
                _, pictures[model, seed] = await draw(server, model, seed)
    return pictures


async def run() -> None:
    """Measure everything."""
    file = build()
    starts = statistics.median([await start_once(worker(file, max_models=1)) for _ in range(NUM_STARTS)])
    expected = await drawn_alone(file)
    with serving(worker(file, max_models=ROOM), WIDE) as server:
        await measure(server, starts, expected)


def main() -> None:
    """Run."""
    asyncio.run(run())


if __name__ == "__main__":
    main()
