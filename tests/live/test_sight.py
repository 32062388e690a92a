"""What an operator sees of a request on its way through gateway and worker: one id in both logs, and one trace."""

import json
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests import dashboard
from tests.collector import Collector, Span
from tests.live.conftest import TASKS, System

WORD = "swordfish"


def lines_of(system: System, name: str) -> list[dict[str, Any]]:
    log = (system.data_dir / "logs" / f"{name}.log").read_text(encoding="utf-8")
    assert WORD not in log
    return [json.loads(line) for line in log.splitlines()]


def test_a_request_has_one_id_and_one_trace_in_both(system: System, client: httpx.Client, collector: Collector) -> None:
    answer = client.get(f"/generate/image?prompt={WORD}&num_inference_steps=3", headers={"x-request-id": "seen-by-all"})
    assert answer.status_code == 200

    def found() -> dict[tuple[str, str], Span]:
        spans = list(collector.spans)
        traces = {span.trace for span in spans if span.attributes.get("atelier.request_id") == "seen-by-all"}
        return {(span.service, span.name): span for span in spans if span.trace in traces}

    expected = [
        ("atelier-gateway", "GET /generate/image"),
        ("atelier-gateway", "POST /v1/images/generations"),
        ("atelier-image", "POST /v1/images/generations"),
        ("atelier-image", "generation"),
    ]
    system.wait(lambda: len(found()) == len(expected))
    spans = found()
    server, relay, worker, generation = (spans[name] for name in expected)
    assert len({span.trace for span in spans.values()}) == 1
    assert [server.parent, relay.parent, worker.parent, generation.parent] == ["", server.id, relay.id, worker.id]
    assert generation.attributes["gen_ai.request.model"] == "tiny-sd"
    assert generation.attributes["atelier.iterations"] == float(answer.headers["x-iterations"])
    assert generation.attributes["atelier.queue_seconds"] >= 0
    assert generation.attributes["atelier.run_seconds"] > 0
    assert WORD.encode() not in collector.bytes

    lines = [line for line in lines_of(system, "image") if line.get("request_id") == "seen-by-all"]
    assert [line["logger"] for line in lines] == ["bentoml.access"]
    assert {line["trace_id"] for line in lines} == {server.trace}


def test_every_line_of_every_process_is_an_object(system: System) -> None:
    for name in ("gateway", *TASKS):
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines_of(system, name)), name


def test_every_series_of_the_dashboard_exists(system: System, client: httpx.Client) -> None:
    assert client.get("/generate/openai/text?prompt=x").status_code == 503
    assert client.get("/generate/image?prompt=x&num_inference_steps=3").status_code == 200
    text = client.get("/metrics").text + httpx.get(f"{system.worker('image')}/metrics", timeout=30).text
    families = list(text_string_to_metric_families(text))
    names = {sample.name for family in families for sample in family.samples}
    names |= {f"{family.name}_total" for family in families if family.type == "counter"}

    assert dashboard.series() - names == set()


def test_pages_and_metrics_of_workers_stay_inside(system: System, client: httpx.Client) -> None:
    """They are there, and the gateway leads to none of them."""
    for path in ("/", "/metrics", "/schema.json", "/docs.json"):
        inside = httpx.get(system.worker("image") + path, timeout=30)
        assert inside.is_success, path
        for prefix in ("", "/generate", "/generate/image", "/v1", "/image"):
            answer = client.get(f"{prefix}{path}")
            assert answer.content != inside.content
            assert "bentoml" not in answer.text.lower().replace("/generate/bentoml/image", "")  # a route of our own
