"""Adapters through the whole system: asked for at once, and everybody gets their own."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.live.conftest import LONG, TASKS, System, free_ports, started
from tests.live.test_sharing import pixels

MODELS = """
[[models]]
id = "adapted-sd"
task = "image"
defaults = { size = "64x64", num_inference_steps = 40, guidance_scale = 7.5 }
quantisation = "int8"
tiny = { recipe = "image" }
folder = { path = "none" }
[[models.adapters]]
name = "ink"
tiny = { recipe = "image_lora" }
[[models.adapters]]
name = "chalk"
scale = -1.0
tiny = { recipe = "image_lora" }
"""


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    file = tmp_path_factory.mktemp("models") / "models.toml"
    file.write_text(MODELS, encoding="utf-8")
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    others = {f"ATELIER_{task.upper()}_URL": nowhere for task in TASKS if task != "image"}
    yield from started(tmp_path_factory, {**others, "ATELIER_MODELS_FILE": str(file)}, can_draw)


def can_draw(system: System) -> bool:
    try:
        models = httpx.get(f"{system.gateway}/v1/models", timeout=10).json()["data"]
    except httpx.TransportError:
        return False
    return any(model["id"] == "adapted-sd" and model["state"] == "ready" for model in models)


def draw(system: System, **body: Any) -> httpx.Response:
    url = f"{system.gateway}/v1/images/generations"
    return httpx.post(url, json={"prompt": "a cat", "model": "adapted-sd", "seed": 3, **body}, timeout=LONG)


def picture(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def test_requests_with_other_adapters_at_once_are_each_as_alone(adapted: System) -> None:
    bodies: list[dict[str, Any]] = [{}, {"adapter": "ink"}, {"adapter": "chalk"}, {"adapter": "ink", "seed": 4}]
    alone = [picture(draw(adapted, **body)) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: picture(draw(adapted, **body)), bodies))

    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() <= 2
    for one in alone[1:]:
        assert np.abs(one - alone[0]).mean() > 3


def test_a_name_that_the_model_does_not_have_is_a_400_with_those_that_it_has(adapted: System) -> None:
    refused = draw(adapted, adapter="oil")
    without = draw(adapted, adapter="ink", model="tiny-sd")
    listed = httpx.get(f"{adapted.gateway}/v1/models/adapted-sd", timeout=LONG).json()

    assert [each["name"] for each in listed["adapters"]] == ["ink", "chalk"]
    for answer, said in ((refused, "choose one of: ink, chalk"), (without, "leave it out")):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("unknown_adapter", "adapter")
        assert error["message"].endswith(said)
