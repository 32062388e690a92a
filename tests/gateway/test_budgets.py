"""Budgets as callers see them: how far they reach, and what comes back."""

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.budgets import ledger
from gateway.budgets.prices import read_prices
from gateway.database.database import open_database
from gateway.errors import Misconfigured
from tests.gateway.conftest import LONG, PNG, Gateway, Workers, error_of, gateway_settings
from tests.gateway.servers import free_port, postgres_server, wait_for
from tests.gateway.test_keys import ROOT, bearer, create

IMAGE = "/generate/image?prompt=x&size=64x64&num_inference_steps=10"
STEPS = 64 * 64 * 10
REFUSALS = [(400, True), (404, True), (429, True), (500, False), (504, False)]

Start = Callable[..., Gateway]


@pytest.fixture
def admin(gateway: Gateway) -> str:
    return str(create(gateway, scopes=["admin", "image"])["key"])


class Owner:
    """Who has a key with budgets."""

    def __init__(self, gateway: Gateway, admin: str, **budgets: dict[str, float]) -> None:
        self._gateway = gateway
        self._admin = bearer(admin)
        key = create(gateway, admin, budgets=budgets)
        self._id = key["id"]
        self.headers = bearer(key["key"])

    def asks(self, path: str = IMAGE, method: str = "GET", **options: Any) -> httpx.Response:
        return self._gateway.client.request(method, path, headers=self.headers, **options)

    @property
    def used(self) -> dict[str, dict[str, float]]:
        """When all requests have ended."""
        self._gateway.metrics()
        shown = self._gateway.client.get(f"/v1/keys/{self._id}", headers=self._admin).json()
        used: dict[str, dict[str, float]] = shown["used"]
        return used


def settle(folder: Path, request_id: str, units: float) -> bool:
    """Send the receipt, as the worker of another gateway would."""

    async def sent() -> bool:
        async with open_database(f"sqlite+aiosqlite:///{folder}/atelier.sqlite3") as database:
            return await ledger.settle(database, request_id, 0, units)

    return asyncio.run(sent())


def test_who_has_a_budget_sees_it(gateway: Gateway, workers: Workers, admin: str) -> None:
    owner = Owner(gateway, admin, day={"pixel_steps": 2.5 * STEPS}, month={"money": 3})
    assert owner.asks().is_success
    assert owner.used["day"]["pixel_steps"] == STEPS

    spent, money = {"limit": 2.5 * STEPS, "used": STEPS}, {"limit": 3, "used": 0}
    assert owner.asks("/v1/budgets").json()["data"] == [
        {"period": "day", "unit": "pixel_steps", **spent},
        {"period": "month", "unit": "money", **money},
    ]
    assert gateway.client.get("/v1/budgets", headers=bearer(admin)).json()["data"] == []


class TestReserving:
    def test_what_does_not_fit_is_refused_until_the_period_ends(
        self, gateway: Gateway, workers: Workers, admin: str
    ) -> None:
        owner = Owner(gateway, admin, day={"pixel_steps": 2.5 * STEPS}, month={"pixel_steps": 10 * STEPS})
        assert [owner.asks().status_code for _ in range(2)] == [200, 200]

        refused = owner.asks()

        assert refused.status_code == 429
        assert error_of(refused)["code"] == "insufficient_quota"
        assert error_of(refused)["param"] == "budgets.day.pixel_steps"
        assert "40960 pixel steps" in error_of(refused)["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 86_400
        assert refused.headers["x-should-retry"] == "false"
        assert len(workers.requests) == 2
        assert owner.used == {"day": {"pixel_steps": 2.0 * STEPS}, "month": {"pixel_steps": 2.0 * STEPS}}

    @pytest.mark.parametrize(
        ("unit", "least", "path", "options"),
        [
            ("tokens", 256, "/generate/text?prompt=hello", {}),
            ("tokens", 50, "/v1/completions", {"method": "POST", "json": {"prompt": "hello", "max_tokens": 50}}),
            ("tokens", 50, "/v1/responses", {"method": "POST", "json": {"input": "hello", "max_output_tokens": 50}}),
            ("audio_seconds", 16, "/generate/audio?prompt=hello", {}),
            ("pixel_steps", 1.2 * STEPS, "/generate/image?prompt=hello", {}),  # the tiny model's defaults
            (
                "frames",
                14,
                "/generate/video",
                {"method": "POST", "files": {"image": PNG}, "data": {"num_frames": "14"}},
            ),
            ("meshes", 1, "/generate/3d?prompt=hello", {}),
        ],
    )
    def test_each_modality_is_counted_in_its_own_unit(
        self, gateway: Gateway, admin: str, unit: str, least: float, path: str, options: dict[str, Any]
    ) -> None:
        everything = ("tokens", "audio_seconds", "pixel_steps", "frames", "meshes")
        owner = Owner(gateway, admin, day=dict.fromkeys(everything, 1000000))
        assert owner.asks(path, **options).status_code == 200
        used = owner.used["day"]
        assert [one for one in everything if used[one]] == [unit]
        assert least <= used[unit] <= least + 400

    def test_a_provider_counts_as_text(self, gateway: Gateway, admin: str) -> None:
        owner = Owner(gateway, admin, day={"tokens": 100})
        assert error_of(owner.asks("/generate/openai/text?prompt=hello"))["code"] == "insufficient_quota"

    @pytest.mark.parametrize(("status", "spent"), [(500, False), (429, False), (401, False), (200, True)])
    def test_a_provider_that_fails_costs_nothing(
        self, start: Start, workers: Workers, status: int, spent: bool
    ) -> None:
        answer = b'{"choices":[{"message":{"content":"Hi."}}]}'

        async def answered(request: httpx.Request) -> httpx.Response:
            response = workers.stream(answer)
            response.status_code = status
            return response

        workers.answer = answered
        gateway = start(openai_base_url="http://provider.test/v1")
        owner = Owner(gateway, str(create(gateway, scopes=["admin"])["key"]), day={"tokens": 1_000_000})
        for _ in range(2):
            owner.asks("/generate/openai/text?prompt=hello")
        assert bool(owner.used["day"]["tokens"]) is spent

    def test_keys_without_budgets_reserve_nothing(self, gateway: Gateway, admin: str, tmp_path: Path) -> None:
        gateway.client.get(IMAGE, headers=bearer(admin))
        gateway.close()
        with closing(sqlite3.connect(tmp_path / "atelier.sqlite3")) as database:
            assert database.execute("SELECT count(*) FROM reservations").fetchone() == (0,)

    def test_an_id_of_ones_own_is_made_one_of_a_kind(self, gateway: Gateway, admin: str) -> None:
        owner = Owner(gateway, admin, day={"pixel_steps": 10 * STEPS})
        owner.headers["x-request-id"] = "my-own-request"
        ids = {owner.asks().headers["x-request-id"] for _ in range(2)}
        assert len(ids) == 2
        assert all(one.startswith("my-own-request-") for one in ids)
        assert owner.used == {"day": {"pixel_steps": 2 * STEPS}}


class TestSettling:
    def test_a_receipt_gives_back_what_was_not_made(self, gateway: Gateway, admin: str, tmp_path: Path) -> None:
        owner = Owner(gateway, admin, day={"pixel_steps": STEPS})
        request_id = owner.asks().headers["x-request-id"]
        assert owner.asks().status_code == 429
        assert settle(tmp_path, request_id, 0)
        assert owner.asks().status_code == 200
        assert owner.used == {"day": {"pixel_steps": STEPS}}

    @pytest.mark.parametrize(("status", "is_released"), REFUSALS)
    def test_what_a_worker_refuses_costs_nothing(
        self, gateway: Gateway, workers: Workers, admin: str, status: int, is_released: bool
    ) -> None:
        """Unless something may have been made: then the receipt says how much, or the deadline that it was all."""
        owner = Owner(gateway, admin, day={"pixel_steps": STEPS})
        workers.refuses_in_envelope(status, "no")
        assert owner.asks().status_code == status
        assert owner.used == {"day": {"pixel_steps": 0.0 if is_released else STEPS}}

    def test_what_never_got_to_a_worker_costs_nothing(self, gateway: Gateway, workers: Workers, admin: str) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused")

        workers.answer = answer
        owner = Owner(gateway, admin, day={"pixel_steps": STEPS})
        for _ in range(20):  # at once: what was held is given back before the answer
            assert owner.asks().status_code == 503
        assert owner.used == {"day": {"pixel_steps": 0.0}}

    @pytest.mark.parametrize("leaves", [True, False])
    def test_nor_does_what_was_given_up_before_there_was_a_connection(self, start: Start, leaves: bool) -> None:
        # The queue is full: the kernel drops whoever else knocks.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
            patience = {"connect_timeout": LONG, "deadline": LONG if leaves else 0.2}
            gateway = start(f"http://127.0.0.1:{full.getsockname()[1]}", **patience)
            owner = Owner(gateway, str(create(gateway, scopes=["admin"])["key"]), day={"pixel_steps": STEPS})
            if leaves:
                with pytest.raises(httpx.ReadTimeout):
                    owner.asks(timeout=0.2)
            else:
                assert owner.asks().status_code == 504
            assert owner.used == {"day": {"pixel_steps": 0.0}}

    def test_a_stream_that_broke_off_waits_for_its_receipt(
        self, gateway: Gateway, workers: Workers, admin: str, tmp_path: Path
    ) -> None:
        owner = Owner(gateway, admin, day={"pixel_steps": STEPS})
        owner.headers["x-request-id"] = "my-own-request"
        workers.streams_once(b"a", httpx.ReadError("killed"))
        with pytest.raises(httpx.RemoteProtocolError):
            owner.asks()
        assert owner.used == {"day": {"pixel_steps": STEPS}}
        assert settle(tmp_path, workers.requests[-1].headers["x-request-id"], 100)
        assert owner.used == {"day": {"pixel_steps": 100.0}}


class TestMoney:
    def test_is_counted_by_the_prices(self, start: Start, tmp_path: Path) -> None:
        file = tmp_path / "prices.toml"
        file.write_text('[models]\n"shapes" = 1e-5\n[tasks]\nimage = 1000\ntext = 0.01\n')
        gateway = start(prices_file=file)
        owner = Owner(gateway, create(gateway, scopes=["admin"])["key"], month={"money": 2.0})
        request_id = owner.asks().headers["x-request-id"]
        assert owner.used == {"month": {"money": STEPS / 1e5}}
        assert settle(tmp_path, request_id, STEPS / 2)
        assert owner.used == {"month": {"money": STEPS / 2e5}}
        refused = owner.asks("/generate/text?prompt=hello")
        assert error_of(refused)["param"] == "budgets.month.money"
        assert owner.asks("/generate/audio?prompt=hello").status_code == 200  # has no price
        listed = owner.asks("/v1/models").json()["data"]
        assert {model["price"] for model in listed if model["id"] in ("shapes", "bark-small")} == {1e-5, 0}

    @pytest.mark.parametrize(
        "wrong", ["[models]\na = -1", "[tasks]\nvideos = 1", "models = 3", "[tasks", "[tasks]\ntext = nan"]
    )
    def test_a_file_that_is_no_table_of_prices_is_said_at_the_start(self, tmp_path: Path, wrong: str) -> None:
        file = tmp_path / "prices.toml"
        file.write_text(wrong)
        with pytest.raises(Misconfigured, match="ATELIER_PRICES_FILE"):
            create_app(gateway_settings(tmp_path, prices_file=file))

    def test_a_file_that_is_not_there_too(self, tmp_path: Path) -> None:
        with pytest.raises(Misconfigured, match="ATELIER_PRICES_FILE"):
            read_prices(tmp_path / "none.toml")


def test_two_gateways_over_postgres_share_a_budget_exactly(start: Start, workers: Workers) -> None:
    with postgres_server() as url:
        both = [start(database_url=url, key_cache_seconds=0) for _ in range(2)]
        admin = create(both[0], scopes=["admin"])["key"]
        owner = Owner(both[0], admin, day={"pixel_steps": 7 * STEPS})

        def call(number: int) -> int:
            return both[number % 2].client.get(IMAGE, headers=owner.headers).status_code

        with ThreadPoolExecutor(10) as pool:
            statuses = list(pool.map(call, range(30), timeout=LONG))
        assert (statuses.count(200), statuses.count(429)) == (7, 23)
        assert owner.used == {"day": {"pixel_steps": 7.0 * STEPS}}
        for gateway in both:
            gateway.close()


class Silent(BaseHTTPRequestHandler):
    """A worker that takes requests and does not answer."""

    is_asked, is_over = Event(), Event()

    def do_POST(self) -> None:
        self.is_asked.set()
        self.is_over.wait(LONG)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def silent_worker() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Silent.is_over.set()
        server.shutdown()
        thread.join()


def test_a_killed_gateway_loses_no_key_and_no_reservation(tmp_path: Path, silent_worker: str) -> None:
    port, file = free_port(), tmp_path / "admin.key"
    environment = {
        **os.environ,
        "ATELIER_DATA_DIR": str(tmp_path),
        "ATELIER_PORT": str(port),
        "ATELIER_IMAGE_URL": silent_worker,
        "ATELIER_ADMIN_KEY_FILE": str(file),
    }
    command = [sys.executable, "-m", "gateway"]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **options)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LONG, trust_env=False) as client:
        wait_for(port)
        admin = bearer(file.read_text().strip())
        body = {"owner": "ada", "budgets": {"day": {"pixel_steps": STEPS}}}
        key = client.post("/v1/keys", json=body, headers=admin).json()

        def ask() -> None:
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(IMAGE, headers=bearer(key["key"]))

        asking = Thread(target=ask)
        asking.start()
        assert Silent.is_asked.wait(LONG)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asking.join()

        process = subprocess.Popen(command, **options)
        wait_for(port)
        assert client.get(f"/v1/keys/{key['id']}", headers=admin).json()["used"] == {"day": {"pixel_steps": STEPS}}
        assert error_of(client.get(IMAGE, headers=bearer(key["key"])))["code"] == "insufficient_quota"
        process.terminate()
        process.wait()
