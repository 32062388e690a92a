"""The installer, on a small project whose lock, packages and torch are stand-ins; once (`fresh`) on this project."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.gateway.servers import free_port

ROOT = Path(__file__).parent.parent
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "atelier"
version = "1"
"""
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "atelier-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("atelier.pth", "")
        wheel.writestr("atelier-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: atelier\\nVersion: 1\\n")
        wheel.writestr("atelier-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("atelier-1.dist-info/RECORD", "")
    return name
"""


def write_wheel(folder: Path, name: str, version: str, *requirements: str) -> Path:
    """Make a package with nothing in it but its name."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        about = f"{name}-{version}.dist-info"
        file.writestr(f"{name}.py", "")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return wheel


def write_index(folder: Path, *wheels: Path) -> str:
    """Lay wheels out as a package index, and return its address."""
    for wheel in wheels:
        page = folder / wheel.name.split("-")[0].replace("_", "-")
        page.mkdir(parents=True)
        (page / "index.html").write_text(f'<a href="{wheel.as_uri()}">{wheel.name}</a>')
    return folder.as_uri()


def lock_of(*wheels: Path, download_mb: int = 1) -> str:
    pins = [
        f"{wheel.name.split('-')[0]}=={wheel.name.split('-')[1]} \\\n"
        f"    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
        for wheel in wheels
    ]
    return f"# {len(wheels)} packages, {download_mb} MB to download (here)\n{''.join(pins)}"


@dataclass(frozen=True)
class Project:
    """A folder as a user has it after `git clone`, and packages to install from."""

    root: Path
    locked: Path
    wheels: Path

    def install(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "deploy/install.py", *options],
            cwd=self.root,
            env={
                **os.environ,
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.locked),
                "PIP_RETRIES": "0",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def copy(self, folder: Path) -> "Project":
        shutil.copytree(self.root.parent, folder / "copy", symlinks=True)
        return Project(*(folder / "copy" / path.name for path in (self.root, self.locked, self.wheels)))

    def refusal(self, **environment: str) -> str:
        """What a failed installation says: one line, after what it had announced."""
        done = self.install(**environment)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    @property
    def installed(self) -> set[str]:
        return {
            path.name.removesuffix(".dist-info") for path in self.root.glob(".venv/lib/*/site-packages/*.dist-info")
        }


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Nothing is installed but pip. Copied by each test: a virtual environment takes seconds to make."""
    folder = tmp_path_factory.mktemp("blank")
    project = Project(folder / "project", folder / "locked", folder / "wheels")
    shutil.copytree(ROOT / "deploy", project.root / "deploy")
    (project.root / "pyproject.toml").write_text(PYPROJECT)
    (project.root / "backend.py").write_text(BACKEND)
    (project.root / "locks").mkdir()
    library = write_wheel(project.locked, "library", "1.0")
    (project.root / "locks" / "all.txt").write_text(lock_of(library))
    (project.root / "locks" / "gateway.txt").write_text(lock_of(library))
    write_wheel(project.wheels, "torch", "2.13.0+cpu", "library", "unused; extra == 'more'")
    subprocess.run([sys.executable, "-m", "venv", project.root / ".venv"], check=True)
    return project


@pytest.fixture
def project(blank: Project, tmp_path: Path) -> Project:
    return blank.copy(tmp_path)


@pytest.fixture(scope="module")
def first_run(blank: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[str]]:
    """A project with everything installed, and what was said meanwhile."""
    project = blank.copy(tmp_path_factory.mktemp("installed"))
    done = project.install(ATELIER_TORCH_WHEELS=str(project.wheels))
    assert done.returncode == 0, done.stderr
    return project, done.stdout.splitlines()


@pytest.fixture
def installed(first_run: tuple[Project, list[str]], tmp_path: Path) -> Project:
    return first_run[0].copy(tmp_path)


def test_another_python_is_refused_with_a_way_out() -> None:
    code = "import runpy, sys; sys.version_info = (3, 12, 4, 'final', 0); sys.argv[1:] = []"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; runpy.run_path('deploy/install.py', run_name='__main__')"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "deploy"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("install: Atelier needs Python 3.11 and this is 3.12.4")
    assert "make PYTHON=/path/to/python3.11 up" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.live
def test_it_says_how_much_and_which_torch_and_installs_both(first_run: tuple[Project, list[str]]) -> None:
    project, lines = first_run
    assert "1 locked packages: about 1 MB to download" in lines[1]
    assert f"torch 2.13.0+cpu (CPU build): 0 MB to copy from {project.wheels}" in lines[2]
    assert lines.index("installed") == len(lines) - 1
    assert {"library-1.0", "torch-2.13.0+cpu", "atelier-1"} <= project.installed


@pytest.mark.live
def test_a_second_run_does_nothing(first_run: tuple[Project, list[str]]) -> None:
    project, _ = first_run
    (project.root / ".venv" / "install.log").unlink()
    again = project.install(ATELIER_TORCH_WHEELS=str(project.wheels))
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert not (project.root / ".venv" / "install.log").exists()  # no pip ran


@pytest.mark.live
def test_another_source_of_torch_replaces_the_build_that_is_there(installed: Project, tmp_path: Path) -> None:
    cuda = write_wheel(tmp_path / "cuda", "nvidia_stand_in", "1.0")
    needs_it = "nvidia-stand-in==1.0; platform_system != 'none'"
    torch = write_wheel(tmp_path / "cuda", "torch", "2.13.0", "library", needs_it)
    done = installed.install(ATELIER_TORCH_INDEX=write_index(tmp_path / "index", cuda, torch), PIP_NO_INDEX="0")
    assert "torch 2.13.0 (CUDA build, with the libraries it needs): 0 MB to copy in 2 files" in done.stdout
    assert {"torch-2.13.0", "nvidia_stand_in-1.0"} <= installed.installed
    assert "torch-2.13.0+cpu" not in installed.installed


@pytest.mark.live
def test_a_failed_change_of_torch_is_made_up_for_by_the_next_run(installed: Project, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    installed.refusal(ATELIER_TORCH_WHEELS=str(other))
    assert "torch-2.13.0+cpu" in installed.installed
    write_wheel(other, "torch", "2.13.0+cu130", "library")
    assert "torch 2.13.0+cu130 (CUDA build)" in installed.install(ATELIER_TORCH_WHEELS=str(other)).stdout
    assert "torch-2.13.0+cu130" in installed.installed


@pytest.mark.live
def test_the_gateway_alone_comes_without_torch(project: Project) -> None:
    assert project.install("--gateway").returncode == 0
    assert {"library-1.0", "atelier-1"} <= project.installed
    assert not any(name.startswith("torch") for name in project.installed)


def test_a_disk_without_room_is_refused_before_anything_comes(project: Project) -> None:
    lock = lock_of(project.locked / "library-1.0-py3-none-any.whl", download_mb=10**9)
    (project.root / "locks" / "all.txt").write_text(lock)
    assert "GB free and this takes about 5500000.0 GB" in project.refusal(ATELIER_TORCH_WHEELS=str(project.wheels))
    assert "library-1.0" not in project.installed


def test_a_folder_without_the_right_torch_is_one_line(project: Project, tmp_path: Path) -> None:
    write_wheel(tmp_path / "old", "torch", "2.12.0")
    (tmp_path / "limits.txt").write_text("torch<=2.14.1")
    for limits in ("", str(tmp_path / "limits.txt")):
        said = project.refusal(ATELIER_TORCH_WHEELS=str(tmp_path / "old"), PIP_CONSTRAINT=limits)
        assert "there is no torch==2.13.0" in said


def test_no_network_is_one_line(project: Project) -> None:
    line = project.refusal(ATELIER_TORCH_INDEX="http://127.0.0.1:9/simple", PIP_NO_INDEX="0", PIP_RETRIES="1")
    assert "no package index answers" in line


def test_an_altered_package_is_refused(project: Project) -> None:
    write_wheel(project.locked, "library", "1.0", "something-else")
    assert "not the one that was locked" in project.refusal(ATELIER_TORCH_WHEELS=str(project.wheels))


def test_two_sources_of_torch_are_one_too_many(project: Project) -> None:
    assert "both set" in project.refusal(ATELIER_TORCH_WHEELS="a", ATELIER_TORCH_INDEX="b")


def test_the_gateway_is_locked_without_torch_at_the_same_versions() -> None:
    everything = pins_of("all")
    gateway = pins_of("gateway")
    assert gateway <= everything
    assert {"torch", "bentoml", "transformers", "diffusers"}.isdisjoint(pin.partition("==")[0] for pin in gateway)
    assert pins_of("bento") - everything == {"torch==2.13.0"}
    assert pins_of("worker") == pins_of("bento") - {"torch==2.13.0"}
    assert pins_of("ui") <= everything


def test_no_lock_names_a_registry() -> None:
    assert all("://" not in lock.read_text() for lock in (ROOT / "locks").glob("*.txt"))


def pins_of(lock: str) -> set[str]:
    lines = (ROOT / "locks" / f"{lock}.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if line[:1].isalnum()}


@pytest.mark.fresh
def test_this_project_installs_from_nothing(tmp_path: Path) -> None:
    command = ["git", "ls-files", "-z"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "deploy/install.py"], cwd=tmp_path, check=True, timeout=1800)
    shown = subprocess.run([tmp_path / ".venv/bin/atelier", "--help"], capture_output=True, text=True, check=True)
    assert "up" in shown.stdout


@pytest.mark.fresh
def test_five_bentos_are_built_of_the_workers_alone_and_serve(tmp_path: Path) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "deploy/build.py"], cwd=ROOT, env=environment, check=True, timeout=600)
    bentos = {latest.parent.name: latest.parent / latest.read_text() for latest in tmp_path.glob("bentos/*/latest")}
    assert set(bentos) == {"text", "audio", "image", "video", "mesh"}
    for name, bento in bentos.items():
        assert f"service: services.{name}.service:" in (bento / "bento.yaml").read_text()
        assert {path.name for path in (bento / "src").iterdir()} == {"services", "bentofile.yaml"}
        assert "torch==2.13.0" in (bento / "env/python/requirements.txt").read_text().splitlines()
        assert serves(name, environment)


def serves(bento: str, environment: Mapping[str, str]) -> bool:
    """Whether it becomes ready, on tiny checkpoints that it builds itself."""
    port = free_port()
    address, folder = f"http://127.0.0.1:{port}/readyz", {"ATELIER_DATA_DIR": environment["BENTOML_HOME"]}
    command = [sys.executable, "-m", "bentoml", "serve", f"{bento}:latest", "--port", str(port)]
    with subprocess.Popen(command, cwd="/", env={**environment, **folder}) as process:
        try:
            for _ in range(600):
                with suppress(httpx.TransportError):
                    if httpx.get(address, timeout=60).is_success:
                        return True
                time.sleep(0.2)
            return False
        finally:
            process.terminate()
