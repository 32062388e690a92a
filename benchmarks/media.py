"""When the first sound and the first sketch come, as parts of the whole time, through the gateway; and the memory.

Last come the peaks of worker and gateway with a speech of 40 sentences and a film of 81 frames, and with a tenth of it.

`python -m benchmarks.media [runs]`: installed, tiny checkpoints built, nothing else running.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from benchmarks.start import PORT, environment_of, is_ready

URL = f"http://127.0.0.1:{PORT}"
SENTENCES = (
    "It was a bright cold day in the north. The lamp had been lit for an hour before anybody came. "
    "Nobody on the pier had seen the boat return! Who would have gone out in such a night?"
)
PICTURE = {"prompt": "A lighthouse at dusk", "size": "256x256", "num_inference_steps": 20}
LONG: dict[str, tuple[str, str, str, list[dict[str, Any]]]] = {
    "speech": (
        "audio",
        "/v1/audio/speech",
        "json",
        [{"model": "bark-small", "input": " ".join([SENTENCES] * times), "seed": 1} for times in (1, 10)],
    ),
    "film": (
        "video",
        "/v1/videos",
        "data",
        [{"prompt": "A lighthouse", "num_frames": frames, "size": "128x128"} for frames in (9, 81)],
    ),
}
SKETCHES = {**PICTURE, "stream": True, "partial_images": 3}


@contextmanager
def started(data_dir: Path) -> Iterator[psutil.Process]:
    """Run `atelier up` until it is ready, and end it."""
    command = [sys.executable, "-m", "cli", "up"]
    up = subprocess.Popen(command, env=environment_of(data_dir), stdout=subprocess.DEVNULL)  # noqa: S603  our own
    try:
        while not is_ready():
            if up.poll() is not None:
                raise SystemExit(f"atelier up ended with {up.returncode}")
            time.sleep(0.1)
        yield psutil.Process(up.pid)
    finally:
        up.terminate()
        up.wait()


def first_and_whole(path: str, body: dict[str, Any], is_first: Callable[[bytes], bool]) -> tuple[float, float]:
    """Return seconds until what has arrived is something, and until all has."""
    began = time.monotonic()
    first, arrived = 0.0, b""
    with httpx.stream("POST", URL + path, json=body, timeout=600) as response:
        response.raise_for_status()
        for piece in response.iter_raw():
            arrived += piece
            if not first and is_first(arrived):
                first = time.monotonic() - began
    return first, time.monotonic() - began


def is_sound(arrived: bytes) -> bool:
    """Whether there is more than a file's head: a quarter of a second of mp3."""
    return len(arrived) > 2_000


def is_sketch(arrived: bytes) -> bool:
    """Whether a whole event is there."""
    return b"\n\n" in arrived


def peaks(up: psutil.Process, task: str, path: str, form: str, bodies: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return the peaks of the task's worker and of the gateway, in megabytes, while each of `bodies` was answered."""
    family = up.children(recursive=True)
    named = {task: f"services.{task}.service", "gateway": "gateway"}  # in their command lines
    told: dict[str, list[int]] = {name: [] for name in named}
    for body in bodies:
        found = {
            name: max(
                (each for each in family if any(word in part for part in each.cmdline())),
                key=lambda each: each.memory_info().rss,
            )
            for name, word in named.items()
        }
        for process in found.values():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")  # begin a new peak
        waiting = {"prefer": "respond-async, wait=300"} if form == "data" else {}
        sent = (
            {"files": {name: (None, str(value)) for name, value in body.items()}} if form == "data" else {"json": body}
        )
        httpx.post(URL + path, headers=waiting, timeout=600, **sent).raise_for_status()
        for name, process in found.items():
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            told[name].append(int(status.partition("VmHWM:")[2].split()[0]) // 1000)
    return told


def main() -> None:
    """Measure each form in turn; the first round warms up."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    speech = {"model": "bark-small", "input": SENTENCES, "seed": 1, "voice": "v2/en_speaker_1"}
    cases: dict[str, tuple[str, dict[str, Any], Callable[[bytes], bool]]] = {
        f"speech, {form}": ("/v1/audio/speech", {**speech, "response_format": form}, is_sound)
        for form in ("pcm", "mp3", "opus")
    }
    cases["speech, mp3 at 1.5"] = ("/v1/audio/speech", {**speech, "response_format": "mp3", "speed": 1.5}, is_sound)
    cases["picture, 20 steps"] = ("/v1/images/generations", SKETCHES, is_sketch)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    with TemporaryDirectory() as folder, started(Path(folder)) as up:
        for number in range(runs + 1):
            for name, case in cases.items():
                times = first_and_whole(*case)
                if number:
                    measured[name].append(times)
        memory = {name: peaks(up, *case) for name, case in LONG.items()}
    for name, times in measured.items():
        shares = sorted(first / whole for first, whole in times)
        first, whole = (statistics.median(column) for column in zip(*times, strict=True))
        told = {"first": round(first, 3), "whole": round(whole, 3), "share": round(statistics.median(shares), 3)}
        sys.stdout.write(f"{name}: {json.dumps({**told, 'shares': [round(shares[0], 3), round(shares[-1], 3)]})}\n")
    for name, found in memory.items():
        sys.stdout.write(f"{name}, peak MB, and of ten times the length: {json.dumps(found)}\n")


if __name__ == "__main__":
    main()
