"""What callers of the gateway notice of Ray Serve behind it: nothing, as long as no process dies."""

import json
import socket
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import GATEWAY, OURS, Cluster, wait_until

CHAT = "/v1/chat/completions"
DRAWN = "/v1/images/generations"
MODEL = "tinyllama-1.1b-chat"
LONG_TEXT = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1900, "temperature": 0}
LONG_PICTURE = {"prompt": "a", "size": "512x512", "num_inference_steps": 200}
SMALL: dict[str, str | int] = {"prompt": "a", "size": "64x64", "num_inference_steps": 2}
PNG = b"\x89PNG\r\n\x1a\n"


def text(max_tokens: int, **more: Any) -> dict[str, Any]:
    return {**LONG_TEXT, "max_tokens": max_tokens, **more}


def send(path: str, body: dict[str, Any], request_id: str) -> socket.socket:
    """Send a request over a connection that the test may close before there is an answer."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{GATEWAY}\r\ncontent-type: application/json\r\n"
        f"x-request-id: {request_id}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", GATEWAY))
    connection.sendall(head.encode() + content)
    return connection


def wait_until_active(cluster: Cluster, task: str) -> None:
    url = f"{cluster.serve(task)}/v1/models"
    wait_until(lambda: any(model["num_active"] for model in httpx.get(url, timeout=30).json()["data"]))


def test_an_answer_is_as_long_as_its_receipt_says(cluster: Cluster, client: httpx.Client) -> None:
    answer = client.post(CHAT, json=text(7), headers={"x-request-id": "a-whole-answer"})
    row = cluster.row("a-whole-answer")

    assert answer.status_code == 200
    assert row["units"]["completion_tokens"] == answer.json()["usage"]["completion_tokens"] == 7
    assert (row["ending"], row["model"]) == ("complete", MODEL)


def test_a_stream_comes_in_pieces_to_its_end(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=text(20, stream=True)) as response:
        pieces = list(response.iter_raw())

    assert len(pieces) > 3
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_a_picture_is_drawn_and_drawn_over(client: httpx.Client) -> None:
    drawn = client.get("/generate/image", params=SMALL)
    assert drawn.content.startswith(PNG)

    form = {name: str(value) for name, value in SMALL.items()}
    edited = client.post("/v1/images/edits", files={"image": ("a.png", drawn.content, "image/png")}, data=form)
    assert edited.json()["data"][0]["b64_json"]


def test_the_workers_own_words_pass(client: httpx.Client) -> None:
    refused = client.post(CHAT, json=text(7, model="nobody's"))

    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")


def test_leaving_a_stream_stops_the_model(cluster: Cluster, client: httpx.Client) -> None:
    with client.stream(
        "POST", CHAT, json={**LONG_TEXT, "stream": True}, headers={"x-request-id": "left-midway"}
    ) as stream:
        assert next(stream.iter_raw())
    row = cluster.row("left-midway")

    assert row["ending"] == "left"
    assert 0 < row["units"]["completion_tokens"] < 1900


def test_leaving_before_the_first_byte_stops_the_model(cluster: Cluster) -> None:
    with send(DRAWN, LONG_PICTURE, "left-early"):
        wait_until_active(cluster, "image")
    row = cluster.row("left-early")

    assert row["ending"] == "left"
    assert row["units"].get("pixel_steps", 0) < 512 * 512 * 200


def test_rays_exporter_has_the_workers_series(cluster: Cluster, client: httpx.Client) -> None:
    """The generations that were left are those of the tests before, and no model went on behind them."""
    wait_until(lambda: cluster.count("atelier_generations_total", ending="left") == 2)

    assert cluster.count("atelier_iterations_after_leave_total") <= 2
    count = cluster.count("atelier_iteration_seconds_count", modality="image")
    assert cluster.count("atelier_iteration_seconds_bucket", modality="image", le="+Inf") == count > 0
    assert httpx.get(f"{cluster.serve('text')}/metrics").status_code == 404


def test_the_settings_of_an_application_say_which_models_it_has(cluster: Cluster, client: httpx.Client) -> None:
    models = httpx.get(f"{cluster.serve('image')}/v1/models", timeout=30).json()["data"]
    drawn = client.post(DRAWN, json={**SMALL, "model": OURS}, headers={"x-request-id": "by-our-own"})

    assert OURS in {model["id"] for model in models}
    assert drawn.json()["data"][0]["b64_json"]
    assert cluster.row("by-our-own")["model"] == OURS


def test_one_process_among_several_takes_no_orders(client: httpx.Client) -> None:
    refused = client.post(f"/v1/models/{MODEL}/unload")

    assert refused.status_code == 400
    assert "the settings say" in refused.json()["error"]["message"]


def test_a_process_that_is_killed_takes_its_requests_along_and_is_replaced(
    cluster: Cluster, client: httpx.Client
) -> None:
    victim = cluster.replica("text")
    assert victim is not None
    job = client.post(CHAT, json=LONG_TEXT, headers={"prefer": "respond-async"}).json()
    with send(CHAT, LONG_TEXT, "lost-on-the-way") as caller:
        wait_until_active(cluster, "text")
        victim.kill()
        answer = b""
        while piece := caller.recv(65_536):
            answer += piece
            if b"}}" in answer:
                break

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"worker_" in answer
    wait_until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["status"] == "completed")
    replacement = cluster.replica("text")
    assert replacement is not None
    assert replacement.pid != victim.pid
    assert client.post(CHAT, json=text(7)).status_code == 200


def test_many_requests_start_a_second_process_that_shares_the_gpu(cluster: Cluster, client: httpx.Client) -> None:
    def at_work() -> int:
        return sum(map(bool, cluster.counts("atelier_iterations_total", modality="image").values()))

    assert (at_work(), cluster.left("GPU")) == (1, 0.5)
    with ExitStack() as callers:
        for number in range(6):
            callers.enter_context(send(DRAWN, LONG_PICTURE, f"one-of-many-{number}"))
        wait_until(lambda: cluster.left("GPU") == 0)
        wait_until(lambda: client.get("/generate/image", params=SMALL).is_success and at_work() == 2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"task": "text", "min_replicas": 0}, "min_replicas"),
        ({"task": "text", "min_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"task": "smell"}, "task"),
        ({"task": "text", "gpus": 1}, "gpus"),
    ],
)
def test_what_serve_cannot_run_is_refused_by_its_name(args: dict[str, Any], words: str) -> None:
    from services.cluster import Scale

    with pytest.raises(ValueError, match=words):
        Scale.model_validate(args)
