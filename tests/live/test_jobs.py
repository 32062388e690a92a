"""Jobs over real workers: the SDK's films, meshes, a chain, and cancelling within an iteration."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trimesh

from tests.live.conftest import LONG, System
from tests.live.pictures import png

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # the SDK, of its video verbs


def ended(system: System, client: httpx.Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def is_over() -> bool:
        found.update(client.get(f"/v1/jobs/{job_id}").json())
        return found["status"] not in ("queued", "in_progress")

    system.wait(is_over)
    return found


def command(system: System, *words: str) -> str:
    """Run `atelier jobs …`; what it prints."""
    environment = {**os.environ, "ATELIER_URL": system.gateway}
    called = [sys.executable, "-m", "cli", "jobs", *words]
    return subprocess.run(
        called, env=environment, check=True, timeout=LONG, stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout


def test_the_sdk_makes_a_film(system: System) -> None:
    sdk = openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="none", timeout=LONG)
    film = sdk.videos.create_and_poll(prompt="", input_reference=("a.png", png()), extra_body={"num_frames": "4"})
    files = {each: sdk.videos.download_content(film.id, variant=each).read() for each in ("video", "thumbnail")}

    assert (film.status, film.progress) == ("completed", 100)
    assert files["video"][4:8] == b"ftyp"
    assert files["video"].find(b"moov") < files["video"].find(b"mdat")
    assert files["thumbnail"].startswith(b"\xff\xd8")
    assert sdk.videos.delete(film.id).deleted


def test_a_chain_from_a_text_to_a_mesh_and_the_command_line(
    system: System, client: httpx.Client, tmp_path: Path
) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 20, "seed": 3}
    steps = [
        {"route": "/v1/chat/completions", "body": chat},
        {"route": "/v1/images/generations", "body": {"num_inference_steps": 2}},
        {"route": "/v1/3d/generations", "body": {"num_inference_steps": 2, "grid_size": 16}},
    ]
    job = ended(system, client, client.post("/v1/jobs", json={"steps": steps}).json()["id"])
    listed, followed = (command(system, *words) for words in (["list"], ["follow", job["id"]]))
    shown = json.loads(command(system, "show", job["id"]))
    command(system, "fetch", job["id"], "--to", str(tmp_path))
    mesh = (tmp_path / f"{job['id']}-glb.glb").read_bytes()

    assert job["status"] == "completed", job["error"]
    assert job["id"] in listed
    assert followed.splitlines()[-1] == "completed (step 3 of 3)"
    assert shown == client.get(f"/v1/jobs/{job['id']}").json()
    assert set(job["usage"]) >= {"tokens", "pixel_steps", "meshes"}
    assert len(trimesh.load_scene(io.BytesIO(mesh), file_type="glb").geometry) == 1


def test_cancel_stops_the_model_within_an_iteration(system: System, client: httpx.Client) -> None:
    def count(name: str, **labels: str) -> float:
        return system.count("image", name, **labels)

    before = count("atelier_generations_total", ending="left"), count("atelier_iterations_after_leave_total")
    query = {"prompt": "a", "num_inference_steps": "200", "size": "256x256"}
    asked = client.get("/generate/image", params=query, headers={"prefer": "respond-async"})
    job_id = asked.json()["id"]
    system.wait(lambda: bool(client.get(f"/v1/jobs/{job_id}").json()["step_progress"].get("step")))
    said = command(system, "cancel", job_id)
    system.wait(lambda: count("atelier_generations_total", ending="left") == before[0] + 1)

    assert said == f"{job_id} is cancelled.\n"
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"
    assert count("atelier_iterations_after_leave_total") <= before[1] + 1
