"""The virtual environment .venv and its pip: made, run, and what pip's failures mean in a line.

Knows nothing of what is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "install.log"
TORCH = "torch==2.13.0"
NOTEWORTHY_MB = 10
FAILURES = (  # what pip says, and what we make of it; the first that fits, as one failure causes others
    (r"No space left on device|Errno 28", "the disk is full"),
    (
        r"NewConnectionError|ConnectTimeout|name resolution|Network is unreachable|ProxyError|Read timed out",
        "no package index answers; is there a network, and does pip know its address?",
    ),
    (r"DO NOT MATCH THE HASHES", "a downloaded file is not the one that was locked; pip's cache or index is altered"),
    (
        rf"No matching distribution found for {re.escape(TORCH)}",
        f"there is no {TORCH} for this system there; ATELIER_TORCH_INDEX or ATELIER_TORCH_WHEELS name another source",
    ),
    (
        rf"Cannot install {re.escape(TORCH)} because",  # pip's words where it has constraints
        f"there is no {TORCH} for this system there, or pip's constraints (pip config list) exclude it; "
        "ATELIER_TORCH_INDEX or ATELIER_TORCH_WHEELS name another source",
    ),
    (r"No matching distribution found for (\S+)", r"the package index has no \1 for this Python and system"),
)


class InstallError(Exception):
    """What stops the installation, in a line."""


def ensure_venv() -> None:
    """Make .venv, or make it anew where it is half made or another Python's."""
    check = "import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))"
    if VENV.exists():
        try:
            if subprocess.run([python(), "-c", check], capture_output=True, check=False).returncode == 0:
                return
        except OSError:
            pass  # it has no interpreter, or one that was uninstalled
        shutil.rmtree(VENV)
    made = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True, check=False)
    if made.returncode:
        if "No space left" in made.stdout + made.stderr:
            raise InstallError("the disk is full")
        hint = "; on Debian: apt-get install python3.11-venv" if "ensurepip" in made.stdout + made.stderr else ""
        raise InstallError(f"{sys.executable} cannot make a virtual environment{hint}")


def python() -> str:
    """Return .venv's interpreter."""
    return str(VENV / "bin" / "python")


def pip(arguments: Sequence[str], environment: Mapping[str, str] | None = None, *, is_quiet: bool = False) -> None:
    """Run .venv's pip; its whole output goes to a log, the large downloads to the user.

    Raises:
        InstallError: it failed.
    """
    quiet_pip = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
    child_environment = {**os.environ, **quiet_pip, **(environment or {})}
    child_environment.pop("PYTHONPATH", None)
    command = [python(), "-m", "pip", *arguments]
    lines: list[str] = []
    with (
        LOG.open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=child_environment
        ) as process,
    ):
        for line in process.stdout or ():
            lines.append(line)
            log.write(line)
            if not is_quiet:
                show(line)
    if process.returncode:
        raise InstallError(explain("".join(lines)))


def show(line: str) -> None:
    """Repeat from pip's output what takes the user's time."""
    download = re.match(r"\s*Downloading (\S+?)-(\d\S*?)-\S+ \((\d+)[\d.]* (MB|GB)", line)
    if download and (int(download[3]) >= NOTEWORTHY_MB or download[4] == "GB"):
        say(f"  downloading {download[1]} {download[2]} ({download[3]} {download[4]})")
    elif line.startswith("Installing collected packages:") and line.count(",") > 1:
        say(f"  unpacking {line.count(',') + 1} packages")


def explain(output: str) -> str:
    """Return what went wrong in a line."""
    for pattern, meaning in FAILURES:
        found = re.search(pattern, output)
        if found:
            return found.expand(meaning)
    errors = re.findall(r"^error: (.+)", output, re.MULTILINE | re.IGNORECASE)
    return f"pip failed: {errors[-1] if errors else 'no reason given'} (all of it: {LOG.relative_to(ROOT)})"


def say(line: str, stream: Any = None) -> None:
    """Print a line at once."""
    print(line, file=stream or sys.stdout, flush=True)
