"""What jobs cost: each step once, cancelled ones as far as they got, and nothing for what is asked again."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from gateway.jobs.books import CALLS
from tests.gateway.conftest import Gateway, Workers, error_of, opened
from tests.gateway.test_jobs import (
    FILES as MADE,
)
from tests.gateway.test_jobs import (
    MESH,
    PROMPT,
    a_file,
    create,
    ended,
    make_key,
    sent,
    until,
    works,
)
from tests.gateway.test_receipts import TOKEN, entry_of, post, receipt

Start = Callable[..., Gateway]
FILM = {"prompt": "a boat", "num_frames": 81}


@pytest.fixture
def gateway(start: Start) -> Gateway:
    return start(internal_token=TOKEN)


@pytest.fixture
def key(gateway: Gateway) -> dict[str, str]:
    """A key that has frames for one film."""
    make_key(gateway, "admin", admin=True)
    return make_key(gateway, "a", budgets={"day": {"frames": 81, "pixel_steps": 10**9}})


def spent(gateway: Gateway, unit: str = "frames") -> float:
    key_id = next(each["id"] for each in gateway.client.get("/v1/keys").json()["data"] if each["owner"] == "a")
    found: float = gateway.client.get(f"/v1/keys/{key_id}").json()["used"]["day"][unit]
    return found


def request_of(gateway: Gateway, answer: httpx.Response) -> dict[str, Any]:
    return entry_of(gateway, answer.headers["x-request-id"])


def test_asked_again_with_nothing_left_it_is_the_same_job(
    gateway: Gateway, workers: Workers, key: dict[str, str]
) -> None:
    works(workers)
    named = {**key, "idempotency-key": "mine"}
    first = create(gateway.client, "/v1/videos", FILM, headers=named)["id"]
    again = create(gateway.client, "/v1/videos", FILM, headers=named)["id"]
    other = gateway.client.post("/v1/videos", json={**FILM, "prompt": "a ship"}, headers=named)
    plain = gateway.client.post("/v1/videos", json=FILM, headers=key)
    ended(gateway.client, first)
    elsewhere = gateway.client.post(f"/v1/jobs/{first}/retry", headers=named)

    assert again == first
    assert error_of(other)["code"] == "idempotency_key_reused"
    assert error_of(plain)["code"] == "insufficient_quota"
    assert error_of(elsewhere)["code"] == "insufficient_quota"  # a key is no way around a budget
    assert spent(gateway) == 9


def test_what_was_cancelled_is_paid_as_far_as_it_was_made(
    gateway: Gateway, workers: Workers, key: dict[str, str]
) -> None:
    gate: Future[None] = Future()
    works(workers, gate)
    answer = gateway.client.post("/v1/videos", json=FILM, headers=key)
    job_id = answer.json()["id"]
    until(gateway.client, job_id, lambda job: bool(job["step_progress"]))
    gateway.client.post(f"/v1/jobs/{job_id}/cancel")
    given_back = spent(gateway)
    told = receipt(f"{CALLS}{job_id}", modality="video", units={"frames": 5}, ending="left")
    lost = receipt(f"{CALLS}{job_id}", modality="video", units={"frames": 7}, ending="left", attempt=2)
    post(gateway, told, lost)
    post(gateway, told)  # as its worker does that had no answer

    assert given_back == 0
    assert spent(gateway) == 5
    assert request_of(gateway, answer)["units"] == {"frames": 5}


def test_it_is_paid_also_where_the_job_has_begun_again(gateway: Gateway, workers: Workers, key: dict[str, str]) -> None:
    gate: Future[None] = Future()
    works(workers, gate)
    first = gateway.client.post("/v1/videos", json=FILM, headers=key)
    job_id = first.json()["id"]
    until(gateway.client, job_id, lambda job: bool(job["step_progress"]))
    gateway.client.post(f"/v1/jobs/{job_id}/cancel")
    again = gateway.client.post(f"/v1/jobs/{job_id}/retry", headers=key)
    told = receipt(f"{CALLS}{job_id}", modality="video", units={"frames": 5}, ending="left")
    post(gateway, told)
    post(gateway, told)
    gate.set_result(None)
    ended(gateway.client, job_id)

    assert [request_of(gateway, each)["units"] for each in (first, again)] == [{"frames": 5}, {"frames": 9}]
    assert spent(gateway) == 14


def test_a_chain_is_paid_step_by_step_also_the_one_that_was_cancelled(
    gateway: Gateway, workers: Workers, key: dict[str, str]
) -> None:
    gate: Future[None] = Future()

    async def answer_step(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/videos":
            return workers.stream(sent("started"), sent("progress", step=1, steps=2), opened(gate))
        files = b"".join(a_file(*each) for each in MADE[request.url.path])
        return workers.stream(files + sent("done", usage={"pixel_steps": 7}))

    workers.answer = answer_step
    steps = [{"route": "/v1/images/generations", "body": PROMPT}, {"route": "/v1/videos", "body": {"num_frames": 8}}]
    others = make_key(gateway, "b")
    answer = gateway.client.post("/v1/jobs", json={"steps": steps})
    job_id = answer.json()["id"]
    until(gateway.client, job_id, lambda job: job["step"] == 2 and bool(job["step_progress"]))
    gateway.client.delete(f"/v1/jobs/{job_id}", headers=others)  # nothing happens
    gateway.client.delete(f"/v1/jobs/{job_id}")
    post(gateway, receipt(f"{CALLS}{job_id}", attempt=2, modality="video", units={"frames": 3}, ending="left"))

    assert gateway.client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert request_of(gateway, answer)["units"] == {"pixel_steps": 7, "frames": 3}


def test_what_failed_costs_nothing_and_beginning_again_has_to_be_paid_for(
    gateway: Gateway, workers: Workers, key: dict[str, str]
) -> None:
    workers.refuses_in_envelope(400, "size: too large", "size")
    job_id = create(gateway.client, "/v1/videos", FILM, headers=key)["id"]
    ended(gateway.client, job_id)
    given_back = spent(gateway)
    gate: Future[None] = Future()
    works(workers, gate)
    create(gateway.client, "/v1/videos", FILM, headers=key)
    refused = gateway.client.post(f"/v1/jobs/{job_id}/retry", headers=key)
    gate.set_result(None)

    assert given_back == 0
    assert error_of(refused)["code"] == "insufficient_quota"


def test_what_begins_again_at_another_gateway_is_one_request(start: Start, workers: Workers) -> None:
    workers.refuses_in_envelope(400, "grid_size: too fine", "grid_size")
    first = start()
    job_id = create(first.client)["id"]
    ended(first.client, job_id)
    first.close()
    works(workers)
    second = start()
    request_id = second.client.post(f"/v1/jobs/{job_id}/retry").headers["x-request-id"]
    ended(second.client, job_id)

    assert [row["request_id"] for row in second.rows()].count(request_id) == 1


def test_a_long_body_is_read_again_before_it_begins_again(gateway: Gateway, workers: Workers) -> None:
    make_key(gateway, "admin", admin=True)
    key = make_key(gateway, "a", scopes=["text"], budgets={"day": {"tokens": 100_000}})
    body = {"input": "word " * 5_000, "max_output_tokens": 16}  # more than lies in the table
    workers.refuses_in_envelope(400, "input: too long", "input")
    asked = gateway.client.post("/v1/responses", json=body, headers={**key, "prefer": "respond-async"})
    ended(gateway.client, asked.json()["id"])
    works(workers)
    again = gateway.client.post(f"/v1/jobs/{asked.json()['id']}/retry", headers=key)
    reserved = spent(gateway, "tokens")

    assert (asked.status_code, again.status_code) == (202, 202)
    assert reserved > 5_000


def test_a_response_is_a_step_of_a_chain(gateway: Gateway, workers: Workers) -> None:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "a red boat"}]}]
    works(workers, files={"/v1/responses": (("answer", "application/json", json.dumps({"output": output}).encode()),)})
    steps = [{"route": "/v1/responses", "body": {"input": "a scene"}}, {"route": MESH}]
    job = ended(gateway.client, create(gateway.client, "/v1/jobs", {"steps": steps})["id"])

    assert job["status"] == "completed", job["error"]
    assert json.loads(workers.requests[1].content)["prompt"] == "a red boat"
