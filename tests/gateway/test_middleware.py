"""What every answer carries, what is written down of it, and how long a body may be."""

import logging
import re
from collections.abc import Callable

import httpx
import pytest

from gateway.app import FORM_ALLOWANCE
from tests.gateway.conftest import Gateway, Workers, error_of

SPEECH = "/generate/audio?prompt=hello"
MAX_UPLOAD = 1000
MAX_BODY = MAX_UPLOAD + FORM_ALLOWANCE

Start = Callable[..., Gateway]


class TestEveryAnswer:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", SPEECH, 200),
            ("GET", "/livez", 200),
            ("GET", "/readyz", 200),
            ("GET", "/metrics", 200),
            ("GET", "/docs", 200),
            ("GET", "/redoc", 200),
            ("GET", "/openapi.json", 200),
            ("GET", "/v1/usage", 200),
            ("GET", "/static-offline-docs/favicon.png", 200),
            ("GET", "/static-offline-docs/../app.py", 404),
            ("GET", "/livez/", 307),
            ("GET", "/generate/audio", 400),
            ("POST", "/generate/video", 400),
            ("GET", "/no/such/route", 404),
            ("POST", "/generate/audio", 405),
            ("PROPFIND", "/generate/audio", 405),
            ("HEAD", "/livez", 405),
            ("HEAD", "/static-offline-docs/favicon.png", 200),
            ("OPTIONS", "/generate/audio", 405),
            ("GET", "/generate/openai/text?prompt=x", 503),
        ],
    )
    def test_carries_its_time_and_its_id(
        self, shared: tuple[Gateway, Workers], method: str, path: str, status: int
    ) -> None:
        connection = shared[0].connect()
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()

        assert response.status == status
        assert re.fullmatch(r"\d+\.\d{6}", response.headers["X-Response-Time"])
        assert re.fullmatch(r"[0-9a-f]{16}", response.headers["X-API-Request-ID"])
        assert response.headers["x-request-id"] == response.headers["X-API-Request-ID"]
        if status >= 400 and body:
            error_of(httpx.Response(status, content=body))

    def test_carries_them_when_the_worker_failed_too(self, shared: tuple[Gateway, Workers]) -> None:
        gateway, workers = shared
        workers.refuses(500, b"")
        response = gateway.client.get(SPEECH)
        assert {"x-response-time", "x-api-request-id", "x-request-id"} <= set(response.headers)

    def test_no_two_have_the_same_id(self, shared: tuple[Gateway, Workers]) -> None:
        ids = {shared[0].client.get("/livez").headers["x-request-id"] for _ in range(20)}
        assert len(ids) == 20

    @pytest.mark.parametrize("offered", ["12345678", "a" * 64, "3f2c-9b_A", "00000000-0000-4000-8000-000000000000"])
    def test_a_tame_id_is_kept_and_reaches_the_worker_and_the_log(
        self, gateway: Gateway, workers: Workers, offered: str
    ) -> None:
        response = gateway.client.get(SPEECH, headers={"X-Request-ID": offered})
        assert response.headers["x-api-request-id"] == response.headers["x-request-id"] == offered
        assert workers.requests[0].headers["x-request-id"] == offered
        assert gateway.rows()[0]["request_id"] == offered

    @pytest.mark.parametrize(
        "offered",
        ["", "short", "a" * 65, "spaces are wild", "semi;colon1", "<script>", "ééééééééé"],
    )
    def test_a_wild_id_is_replaced(self, shared: tuple[Gateway, Workers], offered: str) -> None:
        response = shared[0].client.get("/livez", headers=[(b"x-request-id", offered.encode())])
        assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])


class TestBooks:
    def test_a_row_says_what_was_asked_and_how_it_went_but_not_the_prompt(
        self, gateway: Gateway, workers: Workers
    ) -> None:
        gateway.client.get(SPEECH)
        gateway.client.get("/generate/image?prompt=a+secret&size=1x1")
        gateway.client.get("/wp-admin?password=secret")
        gateway.client.request("PROPFIND", "/livez")
        gateway.client.head("/livez")

        rows = gateway.rows()

        assert [(row["method"], row["endpoint"], row["status"], row["successful"]) for row in rows] == [
            ("GET", "/generate/audio", 200, 1),
            ("GET", "/generate/image", 400, 0),
            ("GET", "/wp-admin", 404, 0),
            ("PROPFIND", "/livez", 405, 0),
            ("HEAD", "/livez", 405, 0),
        ]
        assert {row["client_address"] for row in rows} == {"127.0.0.1"}
        assert {row["ending"] for row in rows} == {"complete"}
        assert all(0 < row["first_byte_seconds"] <= row["response_seconds"] for row in rows)
        assert rows[-1]["bytes_out"] == 0
        assert "secret" not in repr(rows)

    def test_the_address_is_the_connections_own(self, gateway: Gateway) -> None:
        gateway.client.get("/livez", headers={"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9"})
        assert gateway.rows()[0]["client_address"] == "127.0.0.1"

    def test_callers_cannot_make_series(self, gateway: Gateway) -> None:
        for number in range(3):
            gateway.client.get(f"/no/{number}?x={number}")
            gateway.client.get(f"/static-offline-docs/{number}")
            gateway.client.request("PROPFIND", f"/livez/{number}")
        gateway.client.get(SPEECH)

        families = gateway.metrics()

        requests = [sample for sample in families["atelier_requests"].samples if sample.name.endswith("_total")]
        counted = {(sample.labels["method"], sample.labels["route"], sample.value) for sample in requests}
        assert {count for count in counted if count[1] != "/metrics"} == {
            ("GET", "other", 6),
            ("other", "other", 3),
            ("GET", "/generate/audio", 1),
        }
        assert {"atelier_response_seconds", "atelier_first_byte_seconds"} <= set(families)


class TestUnforeseen:
    def test_what_nobody_has_caught_is_an_error_without_details(
        self, start: Start, workers: Workers, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            raise ZeroDivisionError("in /srv/torch/nn.py")

        workers.answer = answer
        gateway = start(cors_origins="https://ui.test")
        response = gateway.client.get(SPEECH, headers={"x-request-id": "unlucky-one", "origin": "https://ui.test"})

        assert response.status_code == 500
        assert error_of(response) == {
            "message": "the gateway failed; its log says why",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
        assert response.headers["x-request-id"] == "unlucky-one"
        assert float(response.headers["x-response-time"]) > 0
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["access-control-allow-origin"] == "https://ui.test"  # so that a browser may read it
        [line] = [record for record in caplog.records if record.exc_info]
        assert line.levelno == logging.ERROR
        assert (gateway.rows()[0]["status"], gateway.rows()[0]["ending"]) == (500, "complete")


class TestKeepAlive:
    def test_an_error_does_not_cost_the_connection(self, shared: tuple[Gateway, Workers]) -> None:
        gateway, workers = shared
        connection = gateway.connect()
        connection.connect()
        the_one = connection.sock
        for method, path in (("GET", "/no"), ("GET", "/generate/text"), ("HEAD", "/livez"), ("POST", "/livez")):
            connection.request(method, path, body=bytes(100_000) if method == "POST" else None)
            connection.getresponse().read()
        workers.refuses(503, b"")
        connection.request("GET", SPEECH)
        assert connection.getresponse().read()
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        assert connection.sock is the_one
