"""What an operator sees of a request on its way through gateway and worker: one id in both logs, and one trace."""

import json
from typing import Any

import httpx

from tests.collector import Collector
from tests.live.conftest import System

WORD = "swordfish"


def lines_of(system: System, name: str) -> list[dict[str, Any]]:
    log = (system.data_dir / "logs" / f"{name}.log").read_text(encoding="utf-8")
    assert WORD not in log
    return [json.loads(line) for line in log.splitlines()]


def test_a_request_has_one_id_and_one_trace_in_both(system: System, client: httpx.Client, collector: Collector) -> None:
    answer = client.get(f"/generate/image?prompt={WORD}&num_inference_steps=3", headers={"x-request-id": "seen-by-all"})
    assert answer.status_code == 200

    def found() -> dict[str, Any]:
        spans = list(collector.spans)
        [trace] = {span.trace for span in spans if span.attributes.get("atelier.request_id") == "seen-by-all"} or {""}
        return {span.name: span for span in spans if span.trace == trace}

    system.wait(lambda: len(found()) == 4)
    spans = found()
    assert set(spans) == {"GET /generate/image", "POST /v1/images/generations", "POST", "generation"}
    server, relay, worker, generation = (
        spans[name] for name in ("GET /generate/image", "POST /v1/images/generations", "POST", "generation")
    )
    assert [server.parent, relay.parent, worker.parent, generation.parent] == ["", server.id, relay.id, worker.id]
    assert {server.service, relay.service} == {"atelier-gateway"}
    assert {worker.service, generation.service} == {"atelier-image"}
    assert generation.attributes["gen_ai.request.model"] == "tiny-sd"
    assert generation.attributes["atelier.iterations"] == float(answer.headers["x-iterations"])
    assert generation.attributes["atelier.queue_seconds"] >= 0
    assert generation.attributes["atelier.run_seconds"] > 0
    assert WORD.encode() not in collector.bytes

    lines = [line for line in lines_of(system, "image") if line.get("request_id") == "seen-by-all"]
    assert [line["logger"] for line in lines] == ["bentoml.access"]
    assert {line["trace_id"] for line in lines} == {server.trace}


def test_every_line_of_every_process_is_an_object(system: System) -> None:
    for name in ("gateway", "text", "audio", "image", "video", "mesh"):
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines_of(system, name)), name
