"""What an operator sets, and what comes of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from gateway.app import create_app
from gateway.errors import Misconfigured
from gateway.settings import Settings
from services.settings import Settings as WorkerSettings
from tests.gateway.conftest import gateway_settings


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATELIER_CORS_ORIGINS", "ATELIER_OPENAI_API_KEY", "ATELIER_DATA_DIR", "ATELIER_TEXT_URL"):
        monkeypatch.delenv(name, raising=False)


def test_by_default_all_workers_are_on_this_machine_and_no_browser_is_let_in() -> None:
    settings = Settings()
    assert settings.workers["text"] == ("http://127.0.0.1:3001",)
    assert settings.workers["mesh"] == ("http://127.0.0.1:3005",)
    assert len(set(settings.workers.values())) == 5
    assert settings.host == "127.0.0.1"
    assert settings.cors_origins == frozenset()


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_CORS_ORIGINS", "https://a.example, https://b.example,")
    monkeypatch.setenv("ATELIER_TEXT_URL", "http://gpu:3001/, http://other:3001,")
    monkeypatch.setenv("ATELIER_DATA_DIR", str(tmp_path))
    settings = Settings()
    assert settings.cors_origins == {"https://a.example", "https://b.example"}
    assert settings.workers["text"] == ("http://gpu:3001", "http://other:3001")
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path}/atelier.sqlite3"


def test_an_empty_path_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_ADMIN_KEY_FILE", "")
    assert Settings().admin_key_file is None


def test_a_modality_without_a_url_is_not_served() -> None:
    assert set(Settings(video_url="", mesh_url=" , ").workers) == {"text", "audio", "image"}


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_OPENAI_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(Settings())
    assert "sk-secret" not in str(Settings().model_dump())


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"port": 70_000},
            {"deadline": 0},
            {"probe_interval": -1},
            {"max_upload_bytes": 0},
            {"key_cache_seconds": -1},
        ),
        *(
            {"text_url": "127.0.0.1:3001"},
            {"image_url": "http://a:1,http://b:99999"},
            {"openai_base_url": "http://[::1"},
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_a_redis_is_named_by_its_address_and_its_password_is_not_shown() -> None:
    with pytest.raises(ValidationError, match="must begin with redis://") as error:
        Settings(redis_url=SecretStr("http://:a-password@cache"))
    assert "a-password" not in str(error.value)
    assert "a-password" not in repr(Settings(redis_url=SecretStr("redis://:a-password@cache")))


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("host", False)],  # noqa: S104
)
def test_only_loopback_is_loopback(host: str, is_loopback: bool) -> None:
    assert Settings(host=host).is_loopback is is_loopback


@pytest.mark.parametrize("setting", ["policy_file", "providers_file", "prices_file"])
@pytest.mark.parametrize("text", [None, "[[", "[nonsense]\na = 1\n", "models = 3\n"])
def test_a_file_that_is_of_no_use_is_named(tmp_path: Path, setting: str, text: str | None) -> None:
    file = tmp_path / "file.toml"
    changes: dict[str, Any] = {setting: file}
    if text is not None:
        file.write_text(text)
    with pytest.raises(Misconfigured, match=f"ATELIER_{setting.upper()}: {file}"):
        create_app(gateway_settings(tmp_path, **changes))


def test_what_cannot_be_is_said_in_a_sentence() -> None:
    environment = {"ATELIER_PORT": "eighty", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "gateway"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("atelier: ATELIER_PORT: ")
    assert "Traceback" not in done.stderr


def test_what_is_not_set_may_lie_in_a_file_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "atelier_internal_token").write_text("of-the-file\n")
    (tmp_path / "atelier_openai_api_key").write_text("of-the-file\n")
    monkeypatch.setenv("ATELIER_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("ATELIER_OPENAI_API_KEY", "of-the-variable")
    assert Settings().internal_token.get_secret_value() == "of-the-file"
    assert Settings().openai_api_key.get_secret_value() == "of-the-variable"
    assert WorkerSettings().internal_token.get_secret_value() == "of-the-file"


def test_secrets_that_cannot_be_read_are_not_done_without() -> None:
    environment = {"ATELIER_SECRETS_DIR": "/nowhere", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "gateway"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "atelier: ATELIER_SECRETS_DIR: /nowhere is no folder"
