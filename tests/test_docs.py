"""What README and docs name exists, and what exists is named there."""

import re
import subprocess
from pathlib import Path

import pytest

from gateway.app import create_app
from gateway.settings import Settings as GatewaySettings
from services.registry import WORKERS, Model, load_models
from tests import settings_page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# How code and files of containers say which environment variables they read.
READS = re.compile(
    r"""environ(?:ment)?(?:\.get|\.setdefault)?[\[(]\s*"([A-Z][A-Z_0-9]+)"
    |"([A-Z][A-Z_0-9]+)"\ (?:not\ )?in\ os\.environ
    |"(OTEL_[A-Z_]+)"|"(ATELIER_[A-Z_]*[A-Z])"|\$\{([A-Z_]+)|^ARG\ ([A-Z_]+)|^\ {4}([A-Z_]+):\ *(?:\#.*)?$""",
    re.MULTILINE | re.VERBOSE,
)
READERS = ("gateway", "services", "ui", "cli", "deploy", "Dockerfile", "docker-compose.yml", "docker-compose.gpu.yml")


def test_the_page_of_settings_is_what_the_code_says() -> None:
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), "run make settings"


def test_every_variable_that_is_read_is_documented() -> None:
    places = [
        path for name in READERS for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*.py"))
    ]
    found = {
        next(filter(None, groups)): path.relative_to(ROOT)
        for path in places
        for groups in READS.findall(path.read_text(encoding="utf-8"))
    }
    assert {
        "ATELIER_API_KEY",
        "OMP_NUM_THREADS",
        "TEXT_GPU",
        "OTEL_SERVICE_NAME",
    } <= found.keys()  # or we do not look well
    missing = {name: str(path) for name, path in found.items() if name not in settings_page.documented()}
    assert not missing, "describe it in tests/settings_page.py, and run make settings"
    assert set(re.findall(r"ATELIER_[A-Z_]+[A-Z]", README)) <= settings_page.documented()


def test_what_ray_is_told_in_tests_is_in_the_how_to() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    told = re.findall(r'"(RAY_\w+)": ', (ROOT / "tests" / "cluster" / "conftest.py").read_text(encoding="utf-8"))
    assert "RAY_AUTH_MODE" in told
    assert [name for name in told if name not in page and name != "RAY_ADDRESS"] == []


def test_every_route_is_in_the_readme_and_every_route_there_exists() -> None:
    paths = {path for path in create_app(GatewaySettings()).openapi()["paths"] if path not in {"/livez", "/readyz"}}
    table = README[README.index("## Routes") : README.index("A worker's own routes")]
    documented = set(re.findall(r"(?:GET|POST|DELETE) (/(?:generate|v1)/[\w/{}]+)", table))
    assert documented == paths


@pytest.mark.parametrize("entry", load_models(profile="hub"), ids=lambda entry: entry.id)
def test_every_model_is_in_the_readme_with_its_licence(entry: Model) -> None:
    assert entry.hub is not None
    row = next(line for line in README.splitlines() if line.startswith(f"| `{entry.id}`"))
    assert entry.hub.licence in row
    assert f"{entry.hub.size_gb} GB" in row
    assert ("to be accepted" in row) is not entry.hub.commercial_use


def test_every_worker_is_in_the_picture() -> None:
    for task, worker in WORKERS.items():
        assert f"{task} :{worker.port}" in README


def test_every_place_in_the_tree_exists() -> None:
    tree = re.search(r"## Find your way\n\n```\n(.*?)```", README, re.DOTALL)
    assert tree
    for line in tree.group(1).splitlines():
        for name in re.findall(r"[\w/]+(?:/|\.py|\.toml)(?=\s|$|,|:)", line.split("   ")[0]):
            assert list(ROOT.glob(f"**/{name.strip('/')}")), name


def test_every_make_target_in_the_readme_exists() -> None:
    listed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout  # noqa: S607
    for target in re.findall(r"`(?:\w+=\S+ )*make ([a-z-]+)`|^(?:\w+=\S+ )*make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"\b{''.join(target)}\b", listed), target


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
