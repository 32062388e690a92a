"""The operator's file of outside models: what is in it, and what is refused at the start."""

from pathlib import Path

import pytest

from gateway.provider_file import Entry, load_entries
from services.registry import Task

OURS: dict[str, Task] = {"tinyllama": "text", "bark": "audio"}
FIRST = '[[models]]\nid = "gpt"\nbase_url = "https://host/v1"\n'
SECOND = '[[models]]\nid = "other"\nbase_url = "https://host/v1"\n'


def load(tmp_path: Path, text: str, **environment: str) -> tuple[Entry, ...]:
    file = tmp_path / "providers.toml"
    file.write_text(text)
    return load_entries(file, OURS, environment).models


def test_a_key_comes_from_the_environment_or_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\n")
    text = f'{FIRST}api_key_env = "KEY"\n{SECOND}api_key_file = "{tmp_path / "key"}"\n'
    entries = load(tmp_path, text, KEY="sk-from-env\n")
    assert [entry.key.get_secret_value() for entry in entries] == ["sk-from-env", "sk-from-file"]
    assert "sk-" not in repr(entries) + str([entry.model_dump() for entry in entries])


def test_what_is_left_out_has_a_sensible_default(tmp_path: Path) -> None:
    [entry] = load(tmp_path, FIRST)
    assert (entry.task, entry.kind, entry.upstream, entry.fallbacks) == ("text", "openai", "gpt", ())


def test_models_fall_back_on_each_other_and_on_ours(tmp_path: Path) -> None:
    entries = load(tmp_path, f'{FIRST}fallbacks = ["other", "tinyllama"]\n{SECOND}fallbacks = ["gpt"]\n')
    assert [entry.fallbacks for entry in entries] == [("other", "tinyllama"), ("gpt",)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FIRST + FIRST, "twice"),
        (FIRST.replace("gpt", "tinyllama"), "one of ours"),
        (FIRST + 'fallbacks = ["nobody"]', "'nobody'"),
        (FIRST + 'fallbacks = ["gpt"]', "no other text model"),
        (FIRST + 'fallbacks = ["bark"]', "no other text model"),
        (FIRST + '[fallbacks]\ntinyllama = ["bark"]', "no other text model"),
        (FIRST + '[fallbacks]\ngpt = ["tinyllama"]', "none of our models"),
        (FIRST + 'api_key_env = "MISSING"', "MISSING"),
        (FIRST + 'key = "sk-secret"', "never in the file"),
        (FIRST + 'api_key = "sk-secret"', "api_key"),
        (FIRST + 'api_key_env = "A"\napi_key_file = "B"', "two places"),
        (FIRST + 'kind = "azure"', "api_version"),
        (FIRST + 'api_version = "2024-10-21"', "api_version"),
        (FIRST.replace("https://host/v1", "host"), "base_url"),
        (FIRST.replace("https://host/v1", "https://host:99999/v1"), "base_url"),
        (FIRST.replace('"gpt"', '"a b"'), "id"),
        (FIRST.replace('"gpt"', '"模型"'), "id"),  # which no header can name
        ("[[models]", "array declaration"),
    ],
)
def test_what_does_not_fit_is_refused_without_showing_a_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        load(tmp_path, text)
    assert "sk-secret" not in str(refusal.value)
