"""What a denoising forward with guidance costs on one thread, and how much sharing it saves.

`python -m benchmarks.cost FOLDER SIZE` prints seconds by the number of requests that share it, as JSON.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import ROOT, Checkpoint

SIZES = (1, 4, 8)
RUNS = 15


def measure(folder: Path, size: int) -> dict[int, float]:
    """Return seconds of a forward by how many requests share it; the sizes take turns."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = UNet2DConditionModel
    denoiser = model.from_pretrained(folder / "unet")
    seconds: dict[int, list[float]] = {number: [] for number in SIZES}
    with torch.inference_mode():
        for _ in range(RUNS + 1):
            for number in SIZES:
                latents = torch.randn(2 * number, 4, size // 8, size // 8)
                context = torch.randn(2 * number, 77, denoiser.config.cross_attention_dim)
                began = time.perf_counter()
                denoiser(latents, torch.full((2 * number,), 500), encoder_hidden_states=context)
                seconds[number].append(time.perf_counter() - began)
    return {number: statistics.median(values[1:]) for number, values in seconds.items()}  # the first warms up


def measure_apart(checkpoint: Checkpoint) -> dict[int, float]:
    """Measure in a process of its own, so that this one stays small."""
    command = (sys.executable, "-m", "benchmarks.cost", str(checkpoint.folder), str(checkpoint.size))
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603  our own words
    return {int(number): seconds for number, seconds in json.loads(done.stdout).items()}


def describe(seconds: dict[int, float]) -> str:
    """Say it in a line."""
    shared = {number: seconds[number] / (number * seconds[1]) for number in SIZES[1:]}
    ratios = ", ".join(f"a batch of {number} costs {ratio:.2f} of {number} singles" for number, ratio in shared.items())
    verdict = "batching pays" if shared[4] <= 0.5 else "batching does not pay enough to count"
    return f"a step of one takes {1000 * seconds[1]:.1f} ms; {ratios}: {verdict}"


if __name__ == "__main__":
    json.dump(measure(Path(sys.argv[1]), int(sys.argv[2])), sys.stdout)
