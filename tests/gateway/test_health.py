"""What the gateway says about itself and its workers."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import LONG, TASKS, Gateway, Workers, opened

Start = Callable[..., Gateway]


def test_ready_when_all_workers_are(gateway: Gateway) -> None:
    response = gateway.client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "workers": dict.fromkeys(TASKS, "ready"),
        "replicas": {task: {"ready": 1, "all": 1} for task in TASKS},
    }


@pytest.mark.parametrize("status", [500, 503])
def test_a_worker_that_is_not_ready_is_loading(gateway: Gateway, workers: Workers, status: int) -> None:
    workers.readiness = status
    response = gateway.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "status": "not_ready",
        "workers": dict.fromkeys(TASKS, "loading"),
        "replicas": {task: {"ready": 0, "all": 1} for task in TASKS},
    }


def test_a_worker_that_waits_for_its_operator_has_failed(start: Start, workers: Workers) -> None:
    async def failed(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"error": {"message": "the disk is full", "code": "model_unavailable"}})

    workers.health = failed  # type: ignore[method-assign]
    assert start().client.get("/readyz").json()["workers"] == dict.fromkeys(TASKS, "failed")


def test_each_worker_is_asked_where_it_is(start: Start, workers: Workers) -> None:
    health = workers.health

    async def by_host(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/readyz"
        if request.url.host == "dead.test":
            raise httpx.ConnectError("refused")
        workers.readiness = 503 if request.url.host == "loading.test" else 200
        return await health(request)

    workers.health = by_host  # type: ignore[method-assign]
    gateway = start(text_url="http://dead.test", image_url="http://loading.test", video_url="")
    response = gateway.client.get("/readyz")

    assert response.status_code == 503
    assert response.json()["workers"] == {
        "text": "unreachable",
        "audio": "ready",
        "image": "loading",
        "mesh": "ready",
    }


def test_nobody_waits_long_for_a_worker_that_did_not_answer_the_last_look(start: Start, workers: Workers) -> None:
    health = workers.health

    async def by_host(request: httpx.Request) -> httpx.Response:
        if request.url.host == "frozen.test":
            raise httpx.ReadTimeout("silence", request=request)
        return await health(request)

    workers.health = by_host  # type: ignore[method-assign]
    client = start(text_url="http://frozen.test").client
    client.get("/readyz")
    assert client.get("/v1/models").is_success

    patience = {asked.url.host: asked.extensions["timeout"]["read"] for asked in workers.requests}
    assert patience.pop("frozen.test") < 1
    assert min(patience.values()) > 1


def test_one_ready_replica_is_enough(start: Start, workers: Workers) -> None:
    health = workers.health

    async def by_host(request: httpx.Request) -> httpx.Response:
        if request.url.host == "dead.test":
            raise httpx.ConnectError("refused")
        return await health(request)

    workers.health = by_host  # type: ignore[method-assign]
    response = start(text_url="http://dead.test,http://worker.test,http://other.test").client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["workers"]["text"] == "ready"
    assert response.json()["replicas"]["text"] == {"ready": 2, "all": 3}


def num_in_progress(gateway: Gateway) -> float:
    families = text_string_to_metric_families(gateway.client.get("/metrics").text)
    return next(family.samples[0].value for family in families if family.name == "atelier_requests_in_progress")


def test_one_look_answers_all_who_ask_meanwhile(start: Start, workers: Workers) -> None:
    gateway = start(probe_interval=60)
    gate: Future[None] = Future()
    answer = workers.health

    async def health(request: httpx.Request) -> httpx.Response:
        await opened(gate)
        return await answer(request)

    gateway.client.get("/readyz")  # the one at the start is over
    workers.health, before = health, workers.num_probes  # type: ignore[method-assign] # the double's
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(gateway.client.get, "/readyz") for _ in range(10)]
        while num_in_progress(gateway) <= 10:  # with the one that asks
            pass
        gate.set_result(None)
        assert {each.result(LONG).status_code for each in asked} == {200}
    assert workers.num_probes == before + 5


def test_alive_while_all_workers_are_dead(start: Start, workers: Workers) -> None:
    workers.is_alive = False
    client = start().client
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json()["workers"] == dict.fromkeys(TASKS, "unreachable")
    assert client.get("/metrics").is_success


def test_alive_while_a_worker_keeps_all_others_waiting(gateway: Gateway, workers: Workers) -> None:
    workers.never_answers()
    connection = gateway.connect()
    connection.request("GET", "/generate/text?prompt=a")
    assert workers.is_asked.wait(20)
    assert gateway.client.get("/livez").is_success
    connection.close()


def test_metrics_count_what_was_left_and_what_failed(gateway: Gateway, workers: Workers) -> None:
    workers.streams_once(b"half", httpx.ReadError("killed"))
    with pytest.raises(httpx.RemoteProtocolError):
        gateway.client.get("/generate/text?prompt=a")

    samples = gateway.metrics()["atelier_requests"].samples
    [sample] = [sample for sample in samples if sample.name.endswith("_total") and sample.labels["route"] != "/metrics"]
    assert sample.labels == {"method": "GET", "route": "/generate/text", "status": "200", "ending": "failed"}


def test_metrics_say_what_they_are(gateway: Gateway) -> None:
    response = gateway.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"atelier_requests", "atelier_response_seconds", "atelier_usage_records_dropped"} <= names
