"""Models that take turns in one place, and one that another worker serves, as callers and operators see them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live.conftest import LONG, TOKEN, System, free_ports, started
from tests.live.test_metering import metered

PATH = "/v1/images/generations"
OWN = """
[[models]]
id = "{id}"
task = "image"
defaults = {{ size = "64x64", num_inference_steps = 2, guidance_scale = 5.0 }}
[models.tiny]
recipe = "image"
[models.folder]
path = "none"
strategy = "{strategy}"
"""
ELSEWHERE = """
[[models]]
id = "far"
task = "image"
defaults = {{ size = "64x64", num_inference_steps = 2, guidance_scale = 5.0 }}
[models.external]
url = "{url}"
"""


@dataclass(frozen=True)
class Both:
    """A running Atelier of one worker, and a worker elsewhere."""

    near: System
    url: str
    far: "subprocess.Popen[bytes]"

    def states(self) -> Mapping[str, str]:
        listed = httpx.get(f"{self.near.gateway}/v1/models", timeout=LONG).json()["data"]
        return {each["id"]: each["state"] for each in listed}

    def num_made(self) -> float:
        """Pictures that the worker elsewhere has made."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=LONG).text)
        samples = [sample for family in families for sample in family.samples]
        return sum(each.value for each in samples if each.name == "atelier_generations_total")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder, [port] = tmp_path_factory.mktemp("elsewhere"), free_ports(1)
    url, near, far = f"http://127.0.0.1:{port}", folder / "near.toml", folder / "far.toml"
    swapped = "".join(OWN.format(id=name, strategy="swap") for name in ("one", "other"))
    near.write_text(swapped + ELSEWHERE.format(url=url), encoding="utf-8")
    far.write_text(OWN.format(id="far", strategy="on_demand"), encoding="utf-8")
    ours = {f"ATELIER_{task}_URL": "" for task in ("TEXT", "AUDIO", "VIDEO", "MESH")}  # no such workers
    for system in started(tmp_path_factory, {**ours, "ATELIER_MODELS_FILE": str(near)}):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")},
            "ATELIER_DATA_DIR": str(folder),
            "ATELIER_IMAGE_PORT": str(port),
            "ATELIER_MODELS_FILE": str(far),
            "ATELIER_INTERNAL_TOKEN": TOKEN["x-atelier-token"],
            "ATELIER_RECEIPTS_URL": f"{system.gateway}/internal/receipts",
        }
        process = subprocess.Popen([sys.executable, "-m", "cli", "serve", "image"], env=environment)
        try:
            yield serving(Both(system, url, process))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=LONG)
            finally:
                process.kill()


def serving(both: Both) -> Both:
    """Wait for the worker elsewhere."""
    both.near.wait(lambda: both.states()["far"] == "cold")
    return both


@pytest.fixture
def client(both: Both) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=both.near.gateway, timeout=LONG, trust_env=False) as http:
        yield http


def draw(client: httpx.Client, model: str, **headers: str) -> httpx.Response:
    answer = client.post(PATH, json={"prompt": "a cat", "model": model, "seed": 1}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model"] == model
    return answer


def test_models_that_share_a_place_take_turns_in_it(both: Both, client: httpx.Client) -> None:
    assert {name: both.states()[name] for name in ("tiny-sd", "one", "other")} == {
        "tiny-sd": "ready",
        "one": "cold",
        "other": "cold",
    }
    for name, gone in (("one", "other"), ("other", "one"), ("one", "other")):
        draw(client, name)
        states = both.states()
        assert (states["tiny-sd"], states[name], states[gone]) == ("ready", "ready", "cold")


def test_a_model_of_a_worker_elsewhere_is_served_metered_and_told_about_as_any(
    both: Both, client: httpx.Client
) -> None:
    drawn = draw(client, "far", **{"x-request-id": "far-away"})
    row = metered(both.near, client, "far-away")
    listed = client.get("/v1/models/far").json()
    at_ours = httpx.get(f"{both.near.worker('image')}/v1/models", timeout=LONG).json()["data"]

    assert drawn.json()["data"]
    assert (row["model"], row["units"]) == ("far", {"pixel_steps": 64 * 64 * 2})
    assert (listed["state"], listed["strategy"], listed["owned_by"]) == ("ready", "external", "local")
    assert {each["id"] for each in at_ours} == {"shapes", "tiny-sd", "one", "other"}
    assert both.num_made() == 1

    job = client.post(PATH, json={"prompt": "a", "model": "far"}, headers={"prefer": "respond-async, wait=100"}).json()
    assert (job["status"], job["model"]) == ("completed", "far")
    assert both.num_made() == 2
    assert client.post("/v1/models/far/unload").status_code == 202
    both.near.wait(lambda: both.states()["far"] == "cold")


def test_where_the_other_worker_is_away_ours_goes_on(both: Both, client: httpx.Client) -> None:
    both.far.send_signal(signal.SIGINT)
    both.far.wait(timeout=LONG)

    both.near.wait(lambda: both.states()["far"] == "unreachable")
    refused = client.post(PATH, json={"prompt": "a", "model": "far"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "worker_unavailable")
    draw(client, "tiny-sd")
    assert client.get("/readyz").status_code == 200
