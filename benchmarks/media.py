"""When the first sound and the first sketch come, as parts of the whole time, through the gateway.

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

from benchmarks.start import PORT, environment_of, is_ready

URL = f"http://127.0.0.1:{PORT}"
SENTENCES = (
    "It was a bright cold day in the north. The lamp had been lit for an hour before anybody came. "
    "Nobody on the pier had seen the boat return! Who would have gone out in such a night?"
)
PICTURE = {"prompt": "A lighthouse at dusk", "size": "256x256", "num_inference_steps": 20}
SKETCHES = {**PICTURE, "stream": True, "partial_images": 3}


@contextmanager
def started(data_dir: Path) -> Iterator[None]:
    """Run `atelier up` until it is ready, and end it."""
    command = [sys.executable, "-m", "cli", "up"]
    up = subprocess.Popen(command, env=environment_of(data_dir), stdout=subprocess.DEVNULL)  # noqa: S603  our own
    try:
        while not is_ready():
            if up.poll() is not None:
                raise SystemExit(f"atelier up ended with {up.returncode}")
            time.sleep(0.1)
        yield
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
    """Whether there is more than a file's head: a tenth of a second of mp3, the shortest of all."""
    return len(arrived) > 2_000


def is_sketch(arrived: bytes) -> bool:
    """Whether a whole event is there."""
    return b"\n\n" in arrived


def main() -> None:
    """Measure each form in turn; the first round warms up."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    speech = {"input": SENTENCES, "seed": 1, "voice": "v2/en_speaker_1"}
    cases: dict[str, tuple[str, dict[str, Any], Callable[[bytes], bool]]] = {
        f"speech, {form}": ("/v1/audio/speech", {**speech, "response_format": form}, is_sound)
        for form in ("pcm", "mp3", "opus", "flac", "aac")
    }
    cases["speech, mp3 at 1.5"] = ("/v1/audio/speech", {**speech, "response_format": "mp3", "speed": 1.5}, is_sound)
    cases["picture, 20 steps"] = ("/v1/images/generations", SKETCHES, is_sketch)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    with TemporaryDirectory() as folder, started(Path(folder)):
        for number in range(runs + 1):
            for name, case in cases.items():
                times = first_and_whole(*case)
                if number:
                    measured[name].append(times)
    for name, times in measured.items():
        shares = sorted(first / whole for first, whole in times)
        first, whole = (statistics.median(column) for column in zip(*times, strict=True))
        told = {"first": round(first, 3), "whole": round(whole, 3), "share": round(statistics.median(shares), 3)}
        sys.stdout.write(f"{name}: {json.dumps({**told, 'shares': [round(shares[0], 3), round(shares[-1], 3)]})}\n")


if __name__ == "__main__":
    main()
