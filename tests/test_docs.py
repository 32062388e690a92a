"""What README and docs name exists, and what exists is named there."""

import re
import subprocess
from pathlib import Path

import pytest

from cli.settings import Settings as UpSettings
from gateway.app import create_app
from gateway.settings import Settings as GatewaySettings
from services.registry import WORKERS, Model, load_models
from services.settings import Settings as WorkerSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
# Read outside of the settings classes: by the installer, which runs before pydantic is there, and by the commands that
# ask the gateway; and by containers: where secrets are, what the studio listens on.
OTHER_VARIABLES = {
    "ATELIER_TORCH_INDEX",
    "ATELIER_TORCH_WHEELS",
    "ATELIER_URL",
    "ATELIER_API_KEY",
    "ATELIER_SECRETS_DIR",
    "ATELIER_UI_HOST",
}


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    fields = {*GatewaySettings.model_fields, *WorkerSettings.model_fields, *UpSettings.model_fields}
    existing = {f"ATELIER_{field.upper()}" for field in fields} | OTHER_VARIABLES
    documented = set(re.findall(r"^\| (`ATELIER_.*?) \|", SETTINGS, re.MULTILINE))
    assert {name for cell in documented for name in re.findall(r"ATELIER_[A-Z_]+", cell)} == existing
    assert set(re.findall(r"ATELIER_[A-Z_]+[A-Z]", README)) <= existing


def test_documented_defaults_are_the_defaults() -> None:
    defaults = {
        f"ATELIER_{name.upper()}": str(field.default)
        for settings in (GatewaySettings, WorkerSettings, UpSettings)
        for name, field in settings.model_fields.items()
        if isinstance(field.default, int | float | str)
    }
    rows = re.findall(r"^\| `(ATELIER_[A-Z_]+)` \| `([^`]+)` \|", SETTINGS, re.MULTILINE)
    assert {name: defaults[name] for name, _ in rows if name in defaults} == {
        name: value for name, value in rows if name in defaults
    }


def test_every_route_is_in_the_readme_and_every_route_there_exists() -> None:
    paths = {path for path in create_app(GatewaySettings()).openapi()["paths"] if path not in {"/livez", "/readyz"}}
    table = README[README.index("## Routes") : README.index("A worker's own routes")]
    documented = set(re.findall(r"(?:GET|POST|DELETE) (/(?:generate|v1)/[\w/{}]+)", table))
    assert documented == paths


@pytest.mark.parametrize("entry", load_models(), ids=lambda entry: entry.id)
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
