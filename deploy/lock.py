"""Writes locks/*.txt from pyproject.toml, with hashes; torch and what only its CUDA build needs stay out.

`make lock` runs it; `make lock UPGRADE=1` takes newer versions. The first line of a lock says how much it downloads,
which `deploy/install.py` repeats before it starts.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from environment import ROOT, TORCH

UV = "uv>=0.13,<0.14"
CHOSEN_BY_USER = re.compile(r"(torch|triton|cuda-[a-z-]+|nvidia-(?!ml-py)[a-z0-9-]+)==")  # ml-py is BentoML's
WORKERS = [argument for task in ("text", "audio", "image", "video", "mesh") for argument in ("--extra", task)]
LOCKS = {
    "all": ["--extra", "all", "--group", "dev", "--group", "install"],
    "gateway": ["--group", "install", "--constraint", "locks/all.txt"],
    "open3d": ["--extra", "open3d", "--constraint", "locks/all.txt"],
    "worker": [*WORKERS, "--constraint", "locks/all.txt"],
    "ray": [*WORKERS, "--extra", "cluster", "--constraint", "locks/all.txt"],
    "ui": ["--extra", "ui", "--constraint", "locks/all.txt"],
    "bento": [*WORKERS, "--constraint", "locks/all.txt"],
}
WITHOUT_HASHES = "bento"  # BentoML adds a line of its own without any, and pip takes all or none


def main() -> None:
    """Compile every lock, then measure what it downloads on this kind of machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take newer versions where pyproject.toml allows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = _python_with_uv(Path(scratch))
        for name, arguments in LOCKS.items():
            lock = ROOT / "locks" / f"{name}.txt"
            pins = _without_torch(_compile(python, lock, [*arguments, *["--upgrade"] * options.upgrade]))
            versions = re.findall(r"^\S+==\S+", pins, re.MULTILINE)
            num_bytes = _download_bytes(python, versions)
            if name == WITHOUT_HASHES:
                pins = "\n".join([*versions, TORCH, ""])
            lock.write_text(f"# {_describe(pins, num_bytes)}\n{pins}", encoding="utf-8")
            sys.stdout.write(f"{lock.relative_to(ROOT)}: {_describe(pins, num_bytes)}\n")


def _python_with_uv(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", UV], check=True)
    return python


def _compile(python: Path, lock: Path, arguments: list[str]) -> str:
    """Return the pins with their hashes; versions stay as they are in the lock where they still fit."""
    command = [str(python), "-m", "uv", "pip", "compile", "--quiet", "pyproject.toml", "--generate-hashes"]
    options = ["--no-header", "--no-annotate", "--python-version", "3.11", "--output-file", str(lock)]
    subprocess.run([*command, *options, *arguments], check=True, cwd=ROOT)
    return lock.read_text(encoding="utf-8")


def _without_torch(pins: str) -> str:
    requirements = re.split(r"^(?=\S)", pins, flags=re.MULTILINE)
    return "".join(requirement for requirement in requirements if not CHOSEN_BY_USER.match(requirement))


def _download_bytes(python: Path, pins: list[str]) -> int:
    """Return how much pip would download for `pins`, which it only asks for here."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--use-feature=fast-deps", "--report", report.name]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *options, *pins], check=True, capture_output=True)
        files = json.loads(Path(report.name).read_bytes())["install"]
    return sum(_num_bytes(file["download_info"]["url"]) for file in files)


def _num_bytes(url: str) -> int:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  pip chose the address
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return int(response.headers["content-length"])


def _describe(pins: str, num_bytes: int) -> str:
    num_packages = len(re.findall(r"^\S+==", pins, re.MULTILINE))
    return f"{num_packages} packages, {num_bytes / 1e6:.0f} MB to download (CPython 3.11, Linux x86-64)"


if __name__ == "__main__":
    main()
