"""How long `atelier up` takes until all five modalities are ready, and how much memory everything holds then.

`python -m benchmarks.start [runs]`: installed, tiny checkpoints built, nothing else running.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil

PORT = 18_000


def start_once(data_dir: Path) -> tuple[float, float, float]:
    """Return seconds until ready, CPU seconds spent until then, and megabytes held (shared pages counted once)."""
    began = time.monotonic()
    up = subprocess.Popen([sys.executable, "-m", "cli", "up"], env=environment_of(data_dir), stdout=subprocess.DEVNULL)
    try:
        while not is_ready():
            if up.poll() is not None:
                raise SystemExit(f"atelier up ended with {up.returncode}")
            time.sleep(0.1)
        seconds = time.monotonic() - began
        family = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
        cpu = sum(sum(process.cpu_times()[:4]) for process in family)
        megabytes = sum(process.memory_full_info().pss for process in family) / 1e6
        return seconds, cpu, megabytes
    finally:
        up.send_signal(signal.SIGINT)
        up.wait()


def environment_of(data_dir: Path) -> dict[str, str]:
    """Keep out of the way of an Atelier that runs already."""
    ports = {
        f"ATELIER_{task}_PORT": str(PORT + n) for n, task in enumerate(("TEXT", "AUDIO", "IMAGE", "VIDEO", "MESH"), 1)
    }
    ports["ATELIER_UI_PORT"] = str(PORT + 6)
    return {**os.environ, **ports, "ATELIER_PORT": str(PORT), "ATELIER_DATA_DIR": str(data_dir)}


def is_ready() -> bool:
    """Whether the gateway says that every worker is ready."""
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


def main() -> None:
    """Measure; the first start, which builds the checkpoints, is not counted."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with TemporaryDirectory() as folder:
        start_once(Path(folder))
        results = [start_once(Path(folder)) for _ in range(runs)]
    for name, unit, values in zip(
        ("ready", "CPU", "memory"), ("s", "s", "MB"), zip(*results, strict=True), strict=True
    ):
        shown = ", ".join(f"{value:.1f}" for value in values)
        sys.stdout.write(f"{name}: median {statistics.median(values):.1f} {unit} of {shown}\n")


if __name__ == "__main__":
    main()
