"""Traces of `python -m gateway`, as a collector gets them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.collector import Collector, Span
from tests.gateway.conftest import LONG, Gateway, Workers
from tests.gateway.processes import Worker, running

WORD = "swordfish"
SPEECH = f"/generate/audio?prompt={WORD}"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def worker() -> Worker:
    worker = Worker()
    worker.gate.set()
    return worker


@pytest.fixture
def collector() -> Collector:
    return Collector()


@contextmanager
def traced(data_dir: Path, worker: Worker, collector: Collector, **settings: str) -> Iterator[httpx.Client]:
    with (
        worker.serve() as url,
        collector.serve() as endpoint,
        running(data_dir, url, **endpoint, **settings) as process,
        httpx.Client(base_url=process.url, trust_env=False, timeout=LONG) as client,
    ):
        yield client


def by_name(spans: list[Span]) -> dict[str, Span]:
    return {span.name: span for span in spans}


def test_a_request_is_one_trace_that_the_worker_is_told_of(
    tmp_path: Path, worker: Worker, collector: Collector
) -> None:
    with traced(tmp_path, worker, collector) as client:
        client.get("/livez")
        request_id = client.get(SPEECH, headers={"traceparent": TRACEPARENT}).headers["x-request-id"]
        spans = by_name(collector.wait_for(2))

    server, relay = spans["GET /generate/audio"], spans["POST /v1/audio/speech"]
    assert {server.service, relay.service} == {"atelier-gateway"}
    assert (server.parent, relay.parent, relay.trace) == ("", server.id, server.trace)
    assert server.trace != TRACE  # anybody could send that
    assert worker.headers[0]["traceparent"].startswith(f"00-{relay.trace}-{relay.id}-")
    assert server.attributes["atelier.request_id"] == request_id
    assert server.attributes["http.response.status_code"] == 200
    assert relay.attributes["http.request.method"] == "POST"


def test_callers_who_are_trusted_say_which_trace_it_is(tmp_path: Path, worker: Worker, collector: Collector) -> None:
    with traced(tmp_path, worker, collector, ATELIER_TRUST_TRACEPARENT="true") as client:
        client.get(SPEECH, headers={"traceparent": TRACEPARENT})
        spans = collector.wait_for(2)

    assert {span.trace for span in spans} == {TRACE}


def test_prompts_and_keys_stay_out_of_traces(tmp_path: Path, worker: Worker, collector: Collector) -> None:
    settings = {"ATELIER_OPENAI_BASE_URL": f"http://{WORD}:{WORD}@127.0.0.1:1/v1", "ATELIER_OPENAI_API_KEY": WORD}
    with traced(tmp_path, worker, collector, **settings) as client:
        headers = {"authorization": f"Bearer {WORD}", "cookie": WORD, "user-agent": WORD}
        client.get(SPEECH, headers=headers)
        client.get(f"/generate/image?prompt={WORD}&size={WORD}", headers=headers)
        client.get(f"/generate/openai/text?prompt={WORD}", headers=headers)
        client.post("/v1/completions", json={"prompt": WORD}, headers=headers)
        spans = by_name(collector.wait_for(7))

    assert spans["POST /v1/chat/completions"].attributes["error.type"] == "ConnectError"
    assert spans["GET /generate/openai/text"].attributes["error.type"] == "502"
    assert WORD.encode() not in collector.bytes


def test_half_an_answer_is_an_error(tmp_path: Path, worker: Worker, collector: Collector) -> None:
    worker.breaks_off = True
    with traced(tmp_path, worker, collector) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(SPEECH)
        spans = by_name(collector.wait_for(2))

    assert spans["GET /generate/audio"].attributes["error.type"] == "broken_off"
    assert spans["POST /v1/audio/speech"].attributes["error.type"] == "RemoteProtocolError"


def test_a_caller_who_leaves_is_no_error(tmp_path: Path, worker: Worker, collector: Collector) -> None:
    worker.gate.clear()
    with traced(tmp_path, worker, collector) as client:
        with client.stream("GET", SPEECH) as stream:
            assert next(stream.iter_raw()) == b"first"
        server = by_name(collector.wait_for(2))["GET /generate/audio"]

    assert server.attributes["atelier.ending"] == "left"
    assert "error.type" not in server.attributes


def test_without_a_collector_nobody_is_told_of_traces(gateway: Gateway, workers: Workers) -> None:
    gateway.client.get(SPEECH, headers={"traceparent": TRACEPARENT})
    assert "traceparent" not in workers.requests[0].headers
