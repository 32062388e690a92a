"""What was made is written down at the gateway, also of a stream that its caller leaves."""

from typing import Any

import httpx
import pytest

from tests.live.conftest import System

CHAT = "/v1/chat/completions"


def body(max_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}], "max_tokens": max_tokens, "temperature": 0}


def metered(system: System, client: httpx.Client, request_id: str) -> dict[str, Any]:
    """The row of a request, as soon as the worker's receipt is in."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        rows = client.get("/v1/usage", params={"limit": 1000}).json()["data"]
        found.extend(row for row in rows if row["request_id"] == request_id and row["run_seconds"] is not None)
        return bool(found)

    system.wait(is_there)
    return found[0]


def test_a_text_stream_left_midway_leaves_a_row_with_the_tokens_made(system: System, client: httpx.Client) -> None:
    before = system.count("text", "atelier_iterations_total")
    headers = {"x-request-id": "left-midway"}
    with client.stream("POST", CHAT, json={**body(1900), "stream": True}, headers=headers) as response:
        assert next(response.iter_raw())
    row = metered(system, client, "left-midway")
    num_iterations = system.count("text", "atelier_iterations_total") - before
    units = row["units"]

    assert row["ending"] == "left"
    assert (row["model"], row["modality"], row["route"]) == ("tinyllama-1.1b-chat", "text", CHAT)
    assert 0 < units["completion_tokens"] < 1900
    assert units["completion_tokens"] <= num_iterations <= units["completion_tokens"] + 3  # parts of the prompt
    assert units["tokens"] == units["prompt_tokens"] + units["completion_tokens"]


def test_a_whole_answers_row_says_what_the_answer_says(system: System, client: httpx.Client) -> None:
    answer = client.post(CHAT, json=body(7), headers={"x-request-id": "whole-answer"}).json()
    row = metered(system, client, "whole-answer")

    assert row["units"]["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert row["units"]["tokens"] == answer["usage"]["total_tokens"]
    assert row["ending"] == "complete"


def test_a_picture_is_metered_in_pixel_steps(system: System, client: httpx.Client) -> None:
    query = {"prompt": "a", "size": "64x64", "num_inference_steps": "3"}
    assert client.get("/generate/image", params=query, headers={"x-request-id": "a-picture"}).status_code == 200

    assert metered(system, client, "a-picture")["units"] == {"pixel_steps": 64 * 64 * 3}


def test_several_pictures_are_one_row_with_what_all_took(system: System, client: httpx.Client) -> None:
    body = {"prompt": "a", "size": "64x64", "num_inference_steps": 3, "n": 3}
    headers = {"x-request-id": "three-pictures"}
    assert client.post("/v1/images/generations", json=body, headers=headers).status_code == 200
    row = metered(system, client, "three-pictures")

    assert row["units"] == {"pixel_steps": 3 * 64 * 64 * 3}
    assert (row["ending"], row["model"], row["modality"]) == ("complete", "tiny-sd", "image")


def test_speech_is_metered_as_it_was_made_whatever_its_speed(system: System, client: httpx.Client) -> None:
    body = {"input": "One. Two.", "seed": 1, "response_format": "pcm"}
    seconds = {}
    for speed in (1, 4):
        headers = {"x-request-id": f"at-speed-{speed}"}
        answer = client.post("/v1/audio/speech", json={**body, "speed": speed}, headers=headers)
        seconds[speed] = len(answer.content) / 2 / 24_000
        row = metered(system, client, f"at-speed-{speed}")
        assert row["units"]["audio_seconds"] == pytest.approx(seconds[1], abs=1e-3)

    assert seconds[4] < seconds[1] / 3
