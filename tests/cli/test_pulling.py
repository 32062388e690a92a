"""`atelier models pull`: a real process, and a hub that plays along."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from services.registry import HubSource, load_models, models_of
from services.tiny.build import ensure
from tests.services.hubs import REPOSITORY, Hub, files_of, serving

MODEL = models_of("text", load_models(profile="hub"))[0]
HUB = cast("HubSource", MODEL.hub)
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = files_of(ensure("text", tmp_path / "tiny"))
    with serving(Hub(files, HUB.repository, HUB.revision)) as hub:
        yield hub


def pull(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "HF_"))}
    return subprocess.run(
        [sys.executable, "-m", "cli", "models", "pull", *arguments],
        cwd=REPOSITORY,
        env={**ours, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_weights_are_pulled_checked_and_mended(hub: Hub, tmp_path: Path) -> None:
    first = pull(tmp_path, MODEL.id, HF_ENDPOINT=hub.url)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(f"{MODEL.id}: 0.00 GB, checked; {HUB.licence}, {HUB.licence_url}")

    hub.asked.clear()
    assert pull(tmp_path, MODEL.id, HF_ENDPOINT=hub.url).stdout == first.stdout
    assert hub.asked == []

    [kept] = tmp_path.glob(f"hub/models--*/snapshots/*/{WEIGHTS}")
    kept.write_bytes(b"\0" * kept.stat().st_size)
    damaged = pull(tmp_path, MODEL.id, HF_ENDPOINT=hub.url)
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert damaged.stderr.startswith(f"atelier: model '{MODEL.id}': {WEIGHTS} is not what the hub says it is")

    assert pull(tmp_path, MODEL.id, HF_ENDPOINT=hub.url).stdout == first.stdout
    assert kept.read_bytes() == hub.files[WEIGHTS]


def test_an_operators_own_models_are_pulled_unless_they_are_here(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        f'''
[[models]]
id = "here"
task = "text"
[models.folder]
path = "here"
[[models]]
id = "own"
task = "text"
[models.hub]
repository = "{HUB.repository}"
revision = "{HUB.revision}"
files = ["config.json"]
licence = "MIT"
licence_url = "https://example.org"
commercial_use = true
strategy = "preload"
size_gb = 0.1
[[models]]
id = "adapted"
task = "text"
folder = {{ path = "here" }}
[[models.adapters]]
name = "ink"
[models.adapters.hub]
repository = "{HUB.repository}"
revision = "{HUB.revision}"
files = ["config.json"]
licence = "MIT"
licence_url = "https://example.org"
commercial_use = true
size_gb = 0.1
''',
        encoding="utf-8",
    )
    pulled = pull(tmp_path, "own", HF_ENDPOINT=hub.url, ATELIER_MODELS_FILE=str(file))
    here = pull(tmp_path, "own", "here", HF_ENDPOINT=hub.url, ATELIER_MODELS_FILE=str(file))
    adapted = pull(tmp_path, "adapted", HF_ENDPOINT=hub.url, ATELIER_MODELS_FILE=str(file))
    alone = pull(tmp_path, "adapted:ink", HF_ENDPOINT=hub.url, ATELIER_MODELS_FILE=str(file))
    bad = pull(tmp_path, "own", ATELIER_MODELS_FILE=str(tmp_path))

    assert (pulled.stdout, pulled.stderr) == ("own: 0.00 GB, checked; MIT, https://example.org\n", "")
    assert adapted.stdout == alone.stdout == "adapted:ink: 0.00 GB, checked; MIT, https://example.org\n"
    assert (here.returncode, here.stderr) == (1, "atelier: here: none of the hub's, and nothing to fetch\n")
    assert (bad.returncode, bad.stderr) == (1, f"atelier: ATELIER_MODELS_FILE: {tmp_path}: is a directory\n")


def test_what_cannot_be_pulled_is_a_line(tmp_path: Path) -> None:
    offline = pull(tmp_path, MODEL.id, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert offline.stderr.startswith(f"atelier: model '{MODEL.id}' could not be fetched from the hub")
    assert offline.stderr.count("\n") == 1

    unknown = pull(tmp_path, "no-such-model")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith(f"atelier: there is no model no-such-model; there are: chat, {MODEL.id}, ")
