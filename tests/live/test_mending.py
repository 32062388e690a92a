"""A model that is on its way, and one whose files are damaged and then mended, beside others of the same worker."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.conftest import LONG, TOKEN, System, started
from tests.services.hubs import Hub, entry, files_of, serving

MODEL, WEIGHTS = "tinyllama-1.1b-chat", "model.safetensors"
MODELS = """
[[models]]
id = "{id}"
task = "text"
defaults = {{ system_prompt = "", max_tokens = 2, temperature = 0, top_k = 50, top_p = 0.95 }}
[models.hub]
repository = "{repository}"
revision = "{revision}"
files = ["*.json", "model.safetensors"]
licence = "MIT"
licence_url = "https://example.org/licence"
commercial_use = true
strategy = "preload"
size_gb = 0.001
[[models]]
id = "own"
task = "text"
defaults = {{ system_prompt = "", max_tokens = 2, temperature = 0, top_k = 50, top_p = 0.95 }}
[models.folder]
path = "{folder}"
strategy = "on_demand"
"""


@dataclass(frozen=True)
class Shop:
    """A running Atelier of one worker, the folder of one of its models, and the hub that has the other."""

    system: System
    folder: Path
    is_open: threading.Event = field(default_factory=threading.Event)

    def listed(self, model: str, url: str | None = None) -> dict[str, Any]:
        listed = httpx.get(f"{url or self.system.gateway}/v1/models", headers=TOKEN, timeout=LONG).json()["data"]
        found: dict[str, dict[str, Any]] = {each["id"]: each for each in listed}
        return found[model]

    def write(self, model: str) -> httpx.Response:
        body = {"model": model, "prompt": "a", "max_tokens": 2}
        return httpx.post(f"{self.system.gateway}/v1/completions", json=body, timeout=LONG)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    subprocess.run([sys.executable, "-m", "services.tiny", "--root", str(root), "text"], check=True, timeout=LONG)
    folder, models = root / "own", root / "models.toml"
    shutil.copytree(root / "text", folder)
    os.truncate(folder / WEIGHTS, 1000)
    source = entry()["hub"]
    models.write_text(MODELS.format(id=MODEL, folder=folder, **source), encoding="utf-8")
    with serving(Hub(files_of(root / "text"))) as hub:
        is_open = hub.paused[WEIGHTS] = threading.Event()
        environment = {
            **{f"ATELIER_{task}_URL": "" for task in ("AUDIO", "IMAGE", "VIDEO", "MESH")},  # no such workers
            "ATELIER_MODELS_FILE": str(models),
            "ATELIER_PROFILE": "hub",
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DOWNLOAD_TIMEOUT": str(int(LONG)),  # what is paused may be so for long
            "HF_HOME": str(root / "hub"),
            "NO_PROXY": "127.0.0.1",
        }
        for system in started(tmp_path_factory, environment, System.lives):
            yield Shop(system, folder, is_open)


def test_a_model_that_is_on_its_way_says_how_far_it_is(shop: Shop) -> None:
    shop.system.wait(lambda: (shop.listed(MODEL).get("progress") or {}).get("num_bytes", 0) > 0)
    told = shop.write(MODEL)
    for seen in (shop.listed(MODEL), shop.listed(MODEL, shop.system.worker("text"))):
        assert (seen["state"], seen["progress"]["phase"]) == ("loading", "downloading")
        assert 0 < seen["progress"]["num_bytes"] < seen["progress"]["total_bytes"]

    assert told.status_code == 503
    assert f"model '{MODEL}' is loading (downloading, " in told.json()["error"]["message"]

    shop.is_open.set()
    shop.system.wait(lambda: shop.listed(MODEL)["state"] == "ready")
    assert shop.listed(MODEL)["progress"] is None
    assert shop.write(MODEL).status_code == 200


def test_a_damaged_model_says_what_is_wrong_and_is_loaded_once_it_is_mended(shop: Shop) -> None:
    shop.is_open.set()
    refused = shop.write("own")
    failed = shop.listed("own")
    again = shop.write("own")

    sentence = f"model 'own' cannot be loaded: {WEIGHTS} "
    assert refused.status_code == again.status_code == 503
    assert failed["state"] == "failed"
    assert failed["failure"].startswith(sentence)
    assert refused.json()["error"]["message"] == again.json()["error"]["message"] == failed["failure"]
    assert shop.write(MODEL).status_code == 200

    shutil.copy(shop.folder.parent / "text" / WEIGHTS, shop.folder)
    told = httpx.post(f"{shop.system.gateway}/v1/models/own/load", timeout=LONG)
    assert told.status_code == 202, told.text
    shop.system.wait(lambda: shop.listed("own")["state"] == "ready")
    assert shop.listed("own")["failure"] is None
    assert shop.write("own").status_code == 200
