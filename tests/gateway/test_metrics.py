"""What an operator can count, who can make series, and what of the workers cannot be reached from outside."""

import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import GatewayError
from gateway.metrics import TASKS as TASKS_OF_ROUTES
from services.engine.metrics import Ending, EngineMetrics
from services.receipts import Receipts
from services.registry import load_models
from services.settings import Settings as WorkerSettings
from tests import dashboard
from tests.gateway.conftest import PNG, TASKS, Gateway, Workers, opened

ROOT = Path(__file__).parents[2]
SPEECH = "/generate/audio?prompt=hello"

Start = Callable[..., Gateway]


def values(families: dict[str, Metric], name: str) -> dict[tuple[str, ...], float]:
    """The samples called `name`, by the values of their labels in the labels' order."""
    samples = [sample for family in families.values() for sample in family.samples if sample.name == name]
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in samples}


def asked(families: dict[str, Metric]) -> dict[str, float]:
    """How often each worker was asked, if it was."""
    return {task: count for (task,), count in values(families, "atelier_upstream_seconds_count").items() if count}


def test_workers_are_timed_and_counted_by_task(gateway: Gateway, workers: Workers) -> None:
    gate: Future[None] = Future()
    workers.streams_once(b"first", opened(gate))
    with gateway.client.stream("GET", SPEECH):
        during = {family.name: family for family in families_of(gateway)}
        gate.set_result(None)
    after = gateway.metrics()

    assert values(during, "atelier_upstream_in_progress")[("audio",)] == 1
    assert values(after, "atelier_upstream_in_progress")[("audio",)] == 0
    assert asked(after) == {"audio": 1}
    assert values(after, "atelier_upstream_seconds_sum")[("audio",)] > 0


def families_of(gateway: Gateway) -> list[Metric]:
    return list(text_string_to_metric_families(gateway.client.get("/metrics").text))


def test_each_route_of_the_workers_has_its_task() -> None:
    assert set(TASKS_OF_ROUTES.values()) == set(TASKS)


def test_no_route_of_a_worker_is_counted_as_other(gateway: Gateway) -> None:
    for path in ("text", "audio", "image", "bentoml/image", "3d"):
        gateway.client.get(f"/generate/{path}?prompt=x")
    gateway.client.post("/generate/video", files={"image": PNG})
    gateway.client.post("/v1/completions", json={"prompt": "x"})

    assert set(asked(gateway.metrics())) == set(TASKS)


def test_models_are_those_of_the_registry(gateway: Gateway, workers: Workers) -> None:
    known = load_models()[0].id
    for name in (known, known, "made-up"):
        workers.streams_once(b"a", x_model=name)
        gateway.client.get(SPEECH)

    assert values(gateway.metrics(), "atelier_answers_total") == {("complete", known): 2, ("complete", "other"): 1}


def test_what_is_refused_is_counted_by_its_reason(start: Start, workers: Workers) -> None:
    gateway = start(max_upload_bytes=1, audio_url="")
    gateway.client.get(SPEECH)
    gateway.client.get("/generate/openai/text?prompt=x")
    gateway.client.post("/generate/video", files={"image": bytes(100_000)})
    workers.refuses_in_envelope(429, "full")
    gateway.client.get("/generate/image?prompt=x")
    workers.refuses_in_envelope(429, "full")
    gateway.client.get("/generate/image?prompt=x")

    assert values(gateway.metrics(), "atelier_refusals_total") == {
        ("modality_not_served",): 1,
        ("provider_not_configured",): 1,
        ("payload_too_large",): 1,
        ("worker_429",): 2,
    }


def test_a_worker_that_is_gone_is_timed_too(gateway: Gateway, workers: Workers) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    workers.answer = answer
    gateway.client.get(SPEECH)
    families = gateway.metrics()
    assert set(values(families, "atelier_upstream_in_progress").values()) == {0}
    assert asked(families) == {"audio": 1}


@pytest.fixture
def series(gateway: Gateway) -> set[str]:
    """The names that gateway and workers have between them."""
    gateway.client.get(SPEECH)
    gateway.client.get("/generate/openai/text?prompt=x")
    registry = CollectorRegistry()
    EngineMetrics("image", registry).of("model")
    Receipts("image", WorkerSettings(), registry)
    families = [*gateway.metrics().values(), *text_string_to_metric_families(generate_latest(registry).decode())]
    # A family without samples yet shows what its samples will be called.
    names = {sample.name for family in families for sample in family.samples}
    return names | {f"{family.name}_total" for family in families if family.type == "counter"}


class TestAlerts:
    def test_every_series_and_reason_that_they_look_at_exists(self, series: set[str]) -> None:
        expressions = " ".join(rule["expr"] for rule in alerts())
        reasons = {each for listed in re.findall(r'reason=~?"([^"]+)"', expressions) for each in listed.split("|")}
        codes = {error.code for error in descendants(GatewayError)} | {f"worker_{status}" for status in (401, 429)}
        endings = set(re.findall(r'ending="([^"]+)"', expressions))

        assert dashboard.SERIES.findall(expressions)
        assert set(dashboard.SERIES.findall(re.sub(r'"[^"]*"', "", expressions))) - series == set()
        assert reasons - codes == set()
        assert endings - set(Ending) == set()

    def test_the_operators_page_says_what_to_do_about_each(self) -> None:
        page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
        assert {rule["alert"] for rule in alerts()} == set(re.findall(r"^\| `(Atelier\w+)` \|", page, re.MULTILINE))


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def descendants(error: type[GatewayError]) -> set[type[GatewayError]]:
    return {error}.union(*map(descendants, error.__subclasses__()))


class TestDashboard:
    def test_every_series_that_it_asks_for_exists(self, series: set[str]) -> None:
        assert dashboard.series() - series == set()
        assert len(dashboard.series()) > 15

    def test_every_panel_has_a_title_a_unit_and_a_place_of_its_own(self) -> None:
        panels = list(dashboard.panels())
        places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
        assert len(places) == len(panels) == len({panel["id"] for panel in panels})
        assert all(panel["title"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/schema.json",
        "/docs.json",
        "/healthz",
        "/generate",
        "/generate/",
        "/generate/../",
        "/generate/../schema.json",
        "/generate/%2e%2e/metrics",
        "/generate/image/../../docs.json",
        "/v1/",
        "/v1/../metrics",
        "/v1/images/generations/../../../schema.json",
        "/image/schema.json",
        "/http://worker.test/schema.json",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_and_metrics_of_workers_cannot_be_reached(
    shared: tuple[Gateway, Workers], method: str, path: str
) -> None:
    gateway, workers = shared
    workers.forget()
    connection = gateway.connect()  # which leaves paths as they are
    connection.request(method, path, headers={"content-length": "0"})
    assert connection.getresponse().status in (307, 404, 405)
    assert workers.requests == []


def test_the_gateways_own_metrics_are_not_a_workers(gateway: Gateway, workers: Workers) -> None:
    text = gateway.client.get("/metrics").text
    assert "atelier_requests_in_progress" in text
    assert "bentoml" not in text
    assert workers.requests == []
