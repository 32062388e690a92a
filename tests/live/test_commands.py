"""Ctrl-C ends what a command has begun on the real workers, and what was made until then is written down."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.supervise import ROOT
from tests.live.conftest import LONG, System
from tests.live.pictures import png
from tests.live.test_leaving import Watch

Begin = Callable[..., "subprocess.Popen[bytes]"]
# The arguments, the route, the unit, and how much of it there would be at the end.
HELD: dict[str, tuple[Sequence[str], str, str, float]] = {
    "text": (("chat", "a", "--max-tokens", "1900"), "/v1/chat/completions", "completion_tokens", 1900),
    "audio": (("speak", "A sentence. " * 100), "/v1/audio/speech", "audio_seconds", 50),
    "image": (
        ("draw", "a", "--size", "512x512", "--steps", "200"),
        "/v1/images/generations",
        "pixel_steps",
        200 * 512 * 512,
    ),
}
JOBS: dict[str, tuple[Sequence[str], str, float]] = {
    "video": (("film", "--image", "a.png", "--frames", "64", "--size", "256x256", "--steps", "100"), "frames", 64),
    "mesh": (("sculpt", "a", "--steps", "200", "--grid", "160"), "meshes", 1),
}


@pytest.fixture
def begin(system: System, tmp_path: Path) -> Iterator[Begin]:
    """Begin a command in a folder of its own, which has a picture."""
    (tmp_path / "a.png").write_bytes(png())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ATELIER_URL": system.gateway, "ATELIER_API_KEY": ""}
    processes = []

    def start(*arguments: str) -> "subprocess.Popen[bytes]":
        command = (sys.executable, "-m", "cli", *arguments)
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def interrupted(process: "subprocess.Popen[bytes]", watch: Watch) -> None:
    """Press Ctrl-C as soon as the model works, and wait until it has stopped."""
    watch.wait_until_working()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 130, said
    watch.wait_until_left()


@pytest.mark.parametrize("task", HELD)
def test_ctrl_c_stops_the_worker(system: System, client: httpx.Client, begin: Begin, tmp_path: Path, task: str) -> None:
    arguments, route, unit, whole = HELD[task]
    for _ in range(5):  # on a busy machine Ctrl-C may come when a tiny model is just done
        known = {row["request_id"] for row in rows_of(client, route)}
        watch = Watch(system, task)
        interrupted(begin(*arguments), watch)
        assert watch.grown("iterations_after_leave_total") <= 1
        row = new_row(system, client, route, known)
        if row["ending"] == "left":
            break

    assert row["ending"] == "left"
    assert row["units"].get(unit, 0) < whole
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def rows_of(client: httpx.Client, route: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.get("/v1/usage", params={"limit": 1000}).json()["data"]
    return [row for row in rows if row["route"] == route]


def new_row(system: System, client: httpx.Client, route: str, known: Set[str]) -> dict[str, Any]:
    """The row of a route that was not there before, as soon as the worker's receipt is in."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [row for row in rows_of(client, route) if row["request_id"] not in known]
        return bool(found) and found[0]["run_seconds"] is not None

    system.wait(is_there)
    return found[0]


@pytest.mark.parametrize("task", JOBS)
def test_ctrl_c_cancels_the_job(system: System, client: httpx.Client, begin: Begin, tmp_path: Path, task: str) -> None:
    arguments, unit, whole = JOBS[task]
    watch = Watch(system, task)
    interrupted(begin(*arguments), watch)

    job = client.get("/v1/jobs", params={"kind": task, "limit": 1}).json()["data"][0]
    assert job["status"] == "cancelled", json.dumps(job)
    assert watch.grown("iterations_after_leave_total") <= 1
    assert job["usage"].get(unit, 0) < whole
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
