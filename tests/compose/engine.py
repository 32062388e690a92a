"""A Docker engine of the tests' own, with a base image made here, as no registry need be reached; knows no Atelier.

It runs in a folder that is deleted with it, and writes no rules for the machine's network.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

BASE = "python:3.11-slim-bookworm"
PROGRAMS = ("dockerd", "containerd", "docker", "mmdebstrap")
LONG = 60.0  # seconds after which the engine counts as hung
PACKAGES = "ca-certificates,python3.11,python3.11-venv,python3-pip"
HOOKS = (  # what makes Debian's Python look like that of the image it stands for; and this machine's certificates
    "copy-in /usr/local/share/ca-certificates /usr/local/share",
    'chroot "$1" update-ca-certificates',
    'ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
    'ln -s /usr/bin/pip3 "$1/usr/local/bin/pip"',
    'rm -f "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED',
)
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
VARIABLES = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PIP_CERT": CERTIFICATES,
    "REQUESTS_CA_BUNDLE": CERTIFICATES,
    "SSL_CERT_FILE": CERTIFICATES,
}


class NoEngine(Exception):
    """No engine can be had here."""


@dataclass(frozen=True)
class Engine:
    """A running one."""

    environment: Mapping[str, str]

    def docker(self, *arguments: str, folder: Path | None = None, **variables: str) -> str:
        """Run the command line and return what it says."""
        return self.run("docker", *arguments, folder=folder, **variables)

    def run(self, *command: str, folder: Path | None = None, **variables: str) -> str:
        """Run a program that is to talk to this engine, and return what it says."""
        done = subprocess.run(
            command,
            env={**self.environment, **variables},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@contextmanager
def running_engine() -> Iterator[Engine]:
    """Start one, and end it with all that is in it.

    Raises:
        NoEngine: it cannot be started; the message says why.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NoEngine(f"there is no {', '.join(missing)} (.ci/engine installs them)")
    if os.geteuid() != 0:
        raise NoEngine("an engine is started by root alone")
    folder = Path(mkdtemp(prefix="atelier-engine-", dir="/var/tmp"))  # images are large, and /tmp may be memory
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command(folder), stdout=log, stderr=log)
        try:
            engine = Engine({**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"})
            wait_for(engine, process, folder / "log")
            yield engine
        finally:
            process.terminate()
            process.wait(LONG)
    finally:
        shutil.rmtree(folder)


def command(folder: Path) -> list[str]:
    places = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/run", "--pidfile", f"{folder}/pid"]
    network = ["--iptables=false", "--ip-forward=false", "--bridge=none"]
    addresses = ["--default-address-pool", "base=10.202.0.0/16,size=24"]
    return ["dockerd", *places, "--host", f"unix://{folder}/socket", *network, *addresses]


def wait_for(engine: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it answers."""
    give_up_at = time.monotonic() + LONG
    while True:
        try:
            version = engine.docker("compose", "version", "--short").strip()
            engine.docker("info")
        except AssertionError as error:
            if process.poll() is not None or time.monotonic() > give_up_at:
                words = (log.read_text(errors="replace").splitlines() or [str(error)])[-1]
                raise NoEngine(f"dockerd or its compose does not run: {words}") from error
            time.sleep(0.2)
        else:
            assert version.startswith(("2.", "v2.", "5."))
            return


def make_base(engine: Engine) -> None:
    """Make what `FROM` names, of Debian's packages."""
    hooks = [f"--customize-hook={hook}" for hook in HOOKS]
    changes = [part for name, value in VARIABLES.items() for part in ("--change", f"ENV {name}={value}")]
    debian = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", *hooks, "bookworm", "-"]
    taken = ["docker", "import", *changes, "-", BASE]
    with subprocess.Popen(debian, stdout=subprocess.PIPE) as made:
        subprocess.run(taken, stdin=made.stdout, env=engine.environment, stdout=subprocess.DEVNULL, check=True)
    assert made.returncode == 0
