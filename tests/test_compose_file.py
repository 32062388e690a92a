"""docker-compose.yml, its overlay and the Dockerfile, read: they name what exists; tests/compose runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.keys.schema import KeyText
from gateway.settings import Settings as GatewaySettings
from services.registry import WORKERS
from services.settings import Settings as WorkerSettings
from tests import settings_page

ROOT = Path(__file__).parents[1]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
GPU = (ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return found


def test_only_settings_that_exist_are_named() -> None:
    assert set(re.findall(r"ATELIER_[A-Z0-9_]+", COMPOSE + GPU)) <= settings_page.documented()


@pytest.mark.parametrize(
    ("service", "settings"), [("gateway", GatewaySettings), *((task, WorkerSettings) for task in WORKERS)]
)
def test_a_service_is_given_settings_and_secrets_that_it_reads(
    services: dict[str, Any], service: str, settings: type[GatewaySettings] | type[WorkerSettings]
) -> None:
    read = {f"ATELIER_{field.upper()}" for field in settings.model_fields} | {"ATELIER_SECRETS_DIR"}
    given = {name for name in services[service]["environment"] if name.startswith("ATELIER_")}
    files = {name.upper() for name in services[service]["secrets"] if name.startswith("atelier_")}
    assert given <= read
    assert files <= read
    assert files


def test_each_worker_runs_its_service_and_may_have_a_gpu(services: dict[str, Any]) -> None:
    assert {task: services[task]["command"] for task in WORKERS} == {
        task: [worker.target] for task, worker in WORKERS.items()
    }
    assert set(yaml.safe_load(GPU)["services"]) == set(WORKERS)


def test_the_image_has_the_torch_that_is_installed_elsewhere() -> None:
    installed = re.search(r'^TORCH = "(.*)"$', (ROOT / "deploy" / "environment.py").read_text(), re.MULTILINE)
    assert installed
    assert set(re.findall(r"torch==\S+", DOCKERFILE)) == {installed[1]}


def test_no_frontend_has_to_be_fetched_to_build() -> None:
    assert "syntax=" not in DOCKERFILE


def make_secrets(clone: Path) -> str:
    """Run deploy/compose.py there, and return what it says."""
    script = clone / "deploy" / "compose.py"
    script.parent.mkdir(exist_ok=True)
    script.write_bytes((ROOT / "deploy" / "compose.py").read_bytes())
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout


def test_secrets_are_made_once_and_for_whoever_may_enter_their_folder(tmp_path: Path) -> None:
    first = make_secrets(tmp_path)
    folder = tmp_path / "secrets"
    made = {file.name: file.read_text() for file in folder.iterdir()}
    (folder / "signing_key").unlink()
    make_secrets(tmp_path)
    again = {file.name: file.read_text() for file in folder.iterdir()}

    assert first == f"The first admin key is in {folder / 'admin_key'}\n"
    assert KeyText.read(made["admin_key"].strip())
    assert made["postgres_password"].strip() in made["database_url"]
    assert GatewaySettings(signing_key=made["signing_key"].strip())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert {name for name in made if made[name] != again[name]} == {"signing_key"}


def test_workers_alone_have_the_hubs_token_and_in_a_file(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "hf_token" in service.get("secrets", ())} == set(WORKERS)
    for task in WORKERS:
        said = {name: value for name, value in services[task]["environment"].items() if name.startswith("HF_TOKEN")}
        assert said == {"HF_TOKEN_PATH": "/run/secrets/hf_token"}


@pytest.mark.parametrize(("written", "read"), [(None, None), ("hf_ours\n", "hf_ours")])
def test_the_file_of_the_hubs_token_is_made_empty_which_is_none(
    tmp_path: Path, written: str | None, read: str | None
) -> None:
    make_secrets(tmp_path)
    file = tmp_path / "secrets" / "hf_token"
    if written:
        file.write_text(written)
    ask = "import huggingface_hub; print(huggingface_hub.get_token())"
    environment = {"PATH": os.environ["PATH"], "HF_TOKEN_PATH": str(file)}
    said = subprocess.run([sys.executable, "-c", ask], env=environment, check=True, capture_output=True, text=True)

    assert said.stdout == f"{read}\n"


def test_every_secret_that_is_read_is_made(tmp_path: Path) -> None:
    named = {Path(each["file"]).name for each in yaml.safe_load(COMPOSE)["secrets"].values()}
    made = (ROOT / "deploy" / "compose.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in made for name in named)
