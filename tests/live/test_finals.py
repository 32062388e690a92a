"""Finished files of every modality, as jobs ask workers for them."""

import base64
import hashlib
import json
from typing import Any

import httpx
import pytest

from tests.live.conftest import LONG, TOKEN, System

HEADERS = {**TOKEN, "accept": "text/event-stream; final=1"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
SIGNATURES = {
    "video": (4, b"ftyp"),
    "thumbnail": (0, b"\xff\xd8\xff"),
    "spritesheet": (0, b"\xff\xd8\xff"),
    "glb": (0, b"glTF\x02"),
    "obj": (0, b"# AI-generated: {"),
    "ply": (0, b"ply\nformat binary_little_endian"),
    "points": (0, b"ply\nformat binary_little_endian"),
    "preview": (0, b"GIF89a"),
    "audio": (8, b"WAVE"),
    "image": (0, b"\x89PNG"),
    "image-2": (0, b"\x89PNG"),
    "answer": (0, b"{"),
}


@pytest.mark.parametrize(
    ("task", "path", "sent", "variants"),
    [
        ("text", "/v1/chat/completions", {"json": {**CHAT, "stream": True}}, ["answer"]),
        ("text", "/v1/responses", {"json": {"input": "Hi", "max_output_tokens": 3}}, ["answer"]),
        ("audio", "/v1/audio/speech", {"json": {"input": "Good evening.", "response_format": "wav"}}, ["audio"]),
        (
            "image",
            "/v1/images/generations",
            {"json": {"prompt": "A boat", "num_inference_steps": 2, "n": 2}},
            ["image", "image-2"],
        ),
        (
            "video",
            "/v1/videos",
            {"data": {"prompt": "A boat", "num_frames": "5"}},
            ["video", "thumbnail", "spritesheet"],
        ),
        (
            "mesh",
            "/v1/3d/generations",
            {
                "json": {"prompt": "A chair", "num_inference_steps": 2, "grid_size": 16}
                | {"num_points": 9, "max_faces": 200, "smoothing": 2, "watertight": True}
            },
            ["glb", "obj", "ply", "points", "preview"],
        ),
    ],
    ids=["chat", "response", "speech", "picture", "film", "mesh"],
)
def test_a_worker_sends_whole_files(system: System, task: str, path: str, sent: Any, variants: list[str]) -> None:
    answer = httpx.post(system.worker(task) + path, headers=HEADERS, timeout=LONG, **sent)

    assert answer.status_code == 200, answer.text
    told = [event.split("\n") for event in answer.text.split("\n\n")[:-1]]
    names = [name.removeprefix("event: ") for name, _ in told]
    assert names[-1] == "done"
    found, content = [], b""
    for name, line in told:
        data = json.loads(line.removeprefix("data: "))
        if name == "event: output":
            content += base64.b64decode(data["b64"])
        if name == "event: file":
            start, signature = SIGNATURES[data["variant"]]
            assert content[start:].startswith(signature)
            assert (data["bytes"], data["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            found.append(data["variant"])
            content = b""
    assert found == variants
