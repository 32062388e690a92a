"""Installs Atelier into .venv: what the lock pins, then torch from where the user says, then the project itself.

Runs on the system's Python with its standard library alone. Knows pip, and nothing of what it installs.

Settings (environment):
    ATELIER_TORCH_INDEX: the address of a package index that has the wanted build of torch (CPU, CUDA, ROCm).
    ATELIER_TORCH_WHEELS: a folder with its wheel instead. Neither: what pip is configured to use.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import ROOT, TORCH, VENV, InstallError, ensure_venv, pip, say

STAMP = VENV / "installed.json"
UNPACKED_LOCK, UNPACKED_TORCH, UNPACKED_CUDA = 5.5, 4.0, 2.0  # bytes on disk per byte downloaded, measured


@dataclass(frozen=True)
class Source:
    """Where torch comes from."""

    name: str
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Torch:
    """The files that bring torch, as pip would choose them."""

    requirement: str
    version: str
    urls: tuple[str, ...]
    sizes: tuple[int | None, ...]

    @property
    def build(self) -> str:
        """What it computes on."""
        _, _, label = self.version.partition("+")
        if label == "cpu":
            return "CPU build"
        if label.startswith("cu") or len(self.urls) > 1:
            return "CUDA build, with the libraries it needs" if len(self.urls) > 1 else "CUDA build"
        return f"{label} build" if label else "this system's standard build"

    @property
    def unpacked(self) -> float:
        """About how many bytes it takes on disk."""
        num_bytes = [size or 0 for size in self.sizes]
        return num_bytes[0] * UNPACKED_TORCH + sum(num_bytes[1:]) * UNPACKED_CUDA


def main(arguments: Sequence[str] | None = None) -> int:
    """Install what is missing and return the exit status."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gateway", action="store_true", help="the gateway alone: no torch, no bentoml")
    options = parser.parse_args(arguments)
    try:
        check_python()
        install(ROOT / "locks" / ("gateway.txt" if options.gateway else "all.txt"), has_torch=not options.gateway)
    except InstallError as error:
        say(f"install: {error}", sys.stderr)
        return 1
    except OSError as error:
        full = error.errno == errno.ENOSPC
        say(f"install: {'the disk is full' if full else error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("install: stopped; run it again to go on", sys.stderr)
        return 130
    return 0


def check_python() -> None:
    """Refuse another Python than 3.11, and say how to name one."""
    if sys.version_info[:2] != (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        raise InstallError(
            f"Atelier needs Python 3.11 and this is {found}; with one installed (apt-get install python3.11 "
            "python3.11-venv, or pyenv, or uv), run make PYTHON=/path/to/python3.11 up"
        )


def install(lock: Path, *, has_torch: bool) -> None:
    """Bring .venv to what `lock` and the settings say, unless it is there already."""
    source = torch_source(os.environ) if has_torch else None
    wanted = {"python": sys.version, "lock": digest(lock.read_bytes()), "project": digest(project_metadata())}
    wanted["torch"] = source.name if source else ""
    before = read_stamp()
    if before == wanted:
        return
    ensure_venv()
    is_switch = bool(source and before.get("torch", source.name) != source.name)
    STAMP.write_text(json.dumps({key: value for key, value in before.items() if key == "torch"}), encoding="utf-8")
    pip_of_lock(lock)
    torch = ask_for_torch(source, lock, ["--ignore-installed"] * is_switch) if source else None
    announce(lock, torch, source, is_first="lock" not in before)
    pip(["install", "--require-hashes", "--no-deps", "--requirement", str(lock)])
    if torch and source:
        install_torch(torch, source, is_switch=is_switch)
    pip(["install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    say("installed")


def install_torch(torch: Torch, source: Source, *, is_switch: bool) -> None:
    """Put torch into .venv, in place of another build where the setting changed."""
    say("  unpacking torch")
    if is_switch:
        pip(["uninstall", "--yes", "torch"])
    pip(["install", *source.options, torch.requirement], dict(source.environment))


def torch_source(environment: Mapping[str, str]) -> Source:
    """Read the settings; the user's choice holds against what pip is configured to use."""
    index, wheels = environment.get("ATELIER_TORCH_INDEX"), environment.get("ATELIER_TORCH_WHEELS")
    if index and wheels:
        raise InstallError("ATELIER_TORCH_INDEX and ATELIER_TORCH_WHEELS are both set; torch can come from one only")
    if wheels:
        folder = str(Path(wheels).resolve())
        return Source(folder, ("--find-links", folder), (("PIP_FIND_LINKS", folder),))
    if index:
        nowhere = str(VENV / "include")  # a folder without wheels: pip takes an empty value for none
        places = {"PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": index, "PIP_FIND_LINKS": nowhere}
        return Source(index, ("--index-url", index), tuple(places.items()))
    return Source("pip's configuration")


def digest(content: bytes) -> str:
    """Return a hash of it."""
    return hashlib.sha256(content).hexdigest()


def project_metadata() -> bytes:
    """Return the part of pyproject.toml that the project is installed from: the tools' settings change more often."""
    import tomllib  # 3.11's own; an older Python gets this far only to be told so

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return json.dumps([settings.get("build-system"), settings["project"]]).encode()


def read_stamp() -> dict[str, str]:
    """Return what a finished installation was made for, or nothing."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return stamp


def pip_of_lock(lock: Path) -> None:
    """Bring pip itself to the locked version: older ones download a package to say what it is."""
    pin = re.search(r"^pip==(?:.*\\\n)*.*\n", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if pin:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(pin[0])
            file.flush()
            pip(["install", "--require-hashes", "--no-deps", "--requirement", file.name])


def ask_for_torch(source: Source, lock: Path, options: Sequence[str]) -> Torch | None:
    """Return what pip would download for torch, or None where it is installed.

    What torch needs and the lock has not (the CUDA build's libraries) is asked for apart: the lock's own packages
    are not installed yet and need not be on torch's index.
    """
    alone = ["--no-index"] if "--find-links" in source.options else []
    found = would_install([*options, *alone, *source.options, "--no-deps", TORCH], source)
    if not found:
        return None
    metadata, url = found[0]["metadata"], found[0]["download_info"]["url"]
    others = list(not_locked(metadata.get("requires_dist", ()), lock))
    more = would_install([*source.options, *others], source) if others else []
    urls = (url, *(file["download_info"]["url"] for file in more))
    return Torch(f"torch=={metadata['version']}", metadata["version"], urls, tuple(map(num_bytes_at, urls)))


def would_install(arguments: Sequence[str], source: Source) -> list[dict[str, Any]]:
    """Ask pip what it would install, without a download where pip and index can do so."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        options = ["--dry-run", "--use-feature=fast-deps", "--report", report.name]
        pip(["install", *options, *arguments], dict(source.environment), is_quiet=True)
        found: list[dict[str, Any]] = json.loads(Path(report.name).read_bytes())["install"]
    return found


def not_locked(requirements: Iterable[str], lock: Path) -> Iterator[str]:
    """Yield the requirements that are no extra's and whose package the lock does not pin."""
    pinned = {canonical(name) for name in re.findall(r"^([\w.-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE)}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        if name and canonical(name[0]) not in pinned and not re.search(r"\bextra\s*==", requirement):
            yield requirement


def canonical(name: str) -> str:
    """Return the package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def num_bytes_at(url: str) -> int | None:
    """Return the size of a file that pip would fetch, or None where its server does not tell."""
    if url.startswith("file:"):
        return Path(urllib.request.url2pathname(url[len("file://") :])).stat().st_size
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20) as response:  # noqa: S310
            length: str | None = response.headers["content-length"]
            return int(length) if length else None
    except (urllib.error.URLError, OSError, ValueError):
        return None


def announce(lock: Path, torch: Torch | None, source: Source | None, *, is_first: bool) -> None:
    """Say how much will be downloaded and which torch, and refuse where the disk has no room for it."""
    first_line = lock.read_text(encoding="utf-8").partition("\n")[0]
    described = re.search(r"(\d+) packages, (\d+) MB to download", first_line)
    num_packages, lock_mb = (int(described[1]), int(described[2])) if described else (0, 0)
    say(f"Installing into {VENV.relative_to(ROOT)}; what pip has in its cache is not downloaded again.")
    to_download = f"about {lock_mb} MB to download" if is_first else f"what changed of about {lock_mb} MB"
    say(f"  {num_packages} locked packages: {to_download}")
    needed = lock_mb * 1e6 * UNPACKED_LOCK * is_first
    if torch and source:
        say(f"  torch {torch.version} ({torch.build}): {amount(torch)} from {source.name}")
        needed += torch.unpacked
    free = shutil.disk_usage(VENV).free
    if needed:
        say(f"  about {needed / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free")
    if free < needed:
        raise InstallError(f"the disk has {free / 1e9:.1f} GB free and this takes about {needed / 1e9:.1f} GB")


def amount(torch: Torch) -> str:
    """Describe how much comes, and whether over the network."""
    total = f"{sum(size or 0 for size in torch.sizes) / 1e6:.0f} MB"
    verb = "to copy" if all(url.startswith("file:") for url in torch.urls) else "to download"
    files = f" in {len(torch.urls)} files" if len(torch.urls) > 1 else ""
    return f"{'more than ' if None in torch.sizes else ''}{total} {verb}{files}"


if __name__ == "__main__":
    sys.exit(main())
