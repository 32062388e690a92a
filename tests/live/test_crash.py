"""A worker that dies: half an answer never looks whole, nobody hangs, and the system comes back by itself."""

import os
import signal

import httpx
import psutil
import pytest

from tests.live.conftest import System


def serving_process(system: System, task: str) -> psutil.Process:
    """The process that runs the model: the leaf below `bentoml serve` on the task's port."""
    target = f"services.{task}.service"
    family = psutil.Process(system.process.pid).children(recursive=True)
    return next(p for p in family if not p.children() and any(target in part for part in p.cmdline()))


def test_a_worker_killed_midway_aborts_the_body_and_comes_back(system: System, client: httpx.Client) -> None:
    params = {"prompt": "A sentence. " * 100}
    with client.stream("GET", "/generate/audio", params=params) as response:
        chunks = response.iter_raw()
        assert next(chunks).startswith(b"RIFF")
        os.kill(serving_process(system, "audio").pid, signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
    while_down = client.get("/generate/audio", params={"prompt": "Hello."})
    if while_down.status_code != 200:
        assert while_down.status_code == 503
        assert int(while_down.headers["retry-after"]) > 0
        assert while_down.json()["error"]["code"] in {"worker_unavailable", "worker_died", "model_loading"}
    system.wait(system.is_ready)
    assert client.get("/generate/audio", params={"prompt": "Hello."}).status_code == 200
    rows = client.get("/v1/usage", params={"limit": 1000}).json()["data"]  # those who wait for it ask often
    broken = [row for row in rows if row["endpoint"] == "/generate/audio" and row["ending"] == "failed"]
    assert broken
    assert not broken[0]["successful"]


def test_the_other_workers_go_on_while_one_is_down(system: System, client: httpx.Client) -> None:
    os.kill(serving_process(system, "mesh").pid, signal.SIGKILL)
    assert client.get("/generate/image", params={"prompt": "a"}).status_code == 200
    assert client.get("/generate/text", params={"prompt": "a"}).status_code == 200
    states = client.get("/readyz").json()["workers"]
    assert states["image"] == "ready"
    system.wait(system.is_ready)
    assert client.get("/generate/3d", params={"prompt": "a"}).status_code == 200
