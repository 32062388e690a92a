"""Receipts from workers: who may send them, that each counts once, and that the usage log says what they say."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.schema import TOKEN_HEADER, Receipt, ReceiptBatch
from tests.gateway.conftest import Gateway, Workers, error_of

TOKEN = "shared by the test"  # noqa: S105 - it opens nothing
ROUTE = "/internal/receipts"
SPEECH = "/generate/audio?prompt=hello"

Start = Callable[..., Gateway]


def receipt(request_id: str, *, attempt: int = 1, **changes: Any) -> Receipt:
    fields: dict[str, Any] = {
        "id": uuid4().hex,
        "request_id": request_id,
        "attempt": attempt,
        "modality": "audio",
        "model": "letters",
        "units": {"audio_seconds": 2.5},
        "iterations": 9,
        "queue_seconds": 0.5,
        "run_seconds": 1.25,
        "ending": "complete",
    }
    return Receipt.model_validate({**fields, **changes})


def post(gateway: Gateway, *receipts: Receipt, token: str | None = TOKEN) -> httpx.Response:
    headers = {TOKEN_HEADER: token} if token is not None else {}
    body = ReceiptBatch(receipts=receipts).model_dump_json()
    return gateway.client.post(ROUTE, content=body, headers={**headers, "content-type": "application/json"})


def entry_of(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The row of a request, as soon as it is written."""
    for _ in range(1000):
        rows = gateway.client.get("/v1/usage", params={"limit": 1000}).json()["data"]
        found: list[dict[str, Any]] = [row for row in rows if row["request_id"] == request_id]
        if found:
            return found[0]
    raise AssertionError("the row was never written")


@pytest.fixture
def gateway(start: Start) -> Gateway:
    return start(internal_token=TOKEN)


@pytest.mark.parametrize("token", [None, "", "guessed", TOKEN + "!", TOKEN[:-1]])
def test_who_is_no_worker_is_refused(gateway: Gateway, token: str | None) -> None:
    refused = post(gateway, receipt("request"), token=token)

    assert (refused.status_code, error_of(refused)["code"]) == (401, "not_a_worker")
    assert TOKEN not in refused.text


def test_what_strangers_send_is_not_even_read(gateway: Gateway) -> None:
    headers = {"content-type": "application/json"}
    assert gateway.client.post(ROUTE, content=b"{", headers=headers).status_code == 401
    assert gateway.client.post(ROUTE, content=b"{", headers={**headers, TOKEN_HEADER: TOKEN}).status_code == 400


@pytest.mark.parametrize("token", [None, "", "guessed"])
def test_without_a_token_nobody_is_a_worker(start: Start, token: str | None) -> None:
    assert post(start(internal_token=""), receipt("request"), token=token).status_code == 401


def test_one_token_may_follow_the_other(start: Start, workers: Workers) -> None:
    tokens = ["new", "old"]
    gateway = start(internal_token=",".join(tokens))
    gateway.client.get(SPEECH)

    assert workers.requests[0].headers[TOKEN_HEADER] == "new"
    statuses = [post(gateway, receipt(f"of {token}"), token=token).status_code for token in ("old", "new", "new,old")]
    assert statuses == [204, 204, 401]


def test_workers_are_shown_the_token_and_clients_are_not(gateway: Gateway, workers: Workers) -> None:
    answer = gateway.client.get(SPEECH, headers={TOKEN_HEADER: "a client's"})

    assert workers.requests[0].headers[TOKEN_HEADER] == TOKEN
    assert TOKEN not in str(answer.headers)


@pytest.mark.parametrize("is_first", [True, False], ids=["before its row", "after its row"])
def test_a_row_says_what_was_made(gateway: Gateway, is_first: bool) -> None:
    def tell() -> None:
        assert post(gateway, receipt("request-1")).status_code == 204

    if is_first:
        tell()
    gateway.client.get(SPEECH, headers={"x-request-id": "request-1"})
    if not is_first:
        assert entry_of(gateway, "request-1")["units"] == {}
        tell()
    row = entry_of(gateway, "request-1")

    assert row["units"] == {"audio_seconds": 2.5}
    assert (row["queue_seconds"], row["run_seconds"]) == (0.5, 1.25)
    assert (row["model"], row["modality"], row["route"]) == ("letters", "audio", "/generate/audio")


def test_a_receipt_that_comes_twice_counts_once(gateway: Gateway) -> None:
    gateway.client.get(SPEECH, headers={"x-request-id": "request-1"})
    told = receipt("request-1")
    for _ in range(3):
        assert post(gateway, told, told).status_code == 204

    assert entry_of(gateway, "request-1")["units"] == {"audio_seconds": 2.5}


def test_attempts_add_up(gateway: Gateway) -> None:
    gateway.client.get(SPEECH, headers={"x-request-id": "request-1"})
    post(gateway, receipt("request-1", ending="failed"), receipt("request-1", attempt=2))

    assert entry_of(gateway, "request-1")["units"] == {"audio_seconds": 5.0}


def test_the_answer_names_the_model_and_the_caller_only_wishes(gateway: Gateway, workers: Workers) -> None:
    workers.streams_once(b"sound", x_model="bark-small")
    gateway.client.get(SPEECH, headers={"x-request-id": "answered"})
    body = {"messages": [{"role": "user", "content": "a"}], "model": "no such model"}
    workers.refuses_in_envelope(404, "there is none", "model")
    gateway.client.post("/v1/chat/completions", json=body, headers={"x-request-id": "wished-for"})

    assert entry_of(gateway, "answered")["model"] == "bark-small"
    assert (entry_of(gateway, "wished-for")["model"], entry_of(gateway, "wished-for")["modality"]) == ("", "text")


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": {"audio_seconds": -1}},
        {"units": {"smiles": 1}},
        {"units": {"tokens": "NaN"}},
        {"id": "short"},
        {"attempt": 0},
        {"ending": "happy"},
        {"request_id": "x" * 129},
        {"colour": "red"},
    ],
)
def test_what_is_no_receipt_is_refused(gateway: Gateway, wrong: dict[str, Any]) -> None:
    good = receipt("request").model_dump(mode="json")
    refused = gateway.client.post(ROUTE, json={"receipts": [{**good, **wrong}]}, headers={TOKEN_HEADER: TOKEN})

    assert refused.status_code == 400


def test_receipts_are_no_requests_of_callers(gateway: Gateway) -> None:
    post(gateway, receipt("request-1"))
    gateway.client.get("/livez")

    assert [row["endpoint"] for row in gateway.rows()] == ["/livez"]


@contextmanager
def away(folder: Path, table: str) -> Iterator[None]:
    """Have a table away for a while, as when the database does not answer."""
    with closing(sqlite3.connect(folder / "atelier.sqlite3", isolation_level=None)) as database:
        database.execute(f"ALTER TABLE {table} RENAME TO hidden")
        yield
        database.execute(f"ALTER TABLE hidden RENAME TO {table}")


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/usage?format=csv", "/v1/usage/summary"])
def test_while_the_database_is_away_who_asks_is_told_to_come_back(gateway: Gateway, path: str, tmp_path: Path) -> None:
    with away(tmp_path, "usage_days" if "summary" in path else "usage"):
        answer = gateway.client.get(path)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "usage_unavailable")
        assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("3", "true")
    assert gateway.client.get(path).status_code == 200


@pytest.mark.parametrize("table", ["receipts", "reservations"])
def test_a_receipt_that_cannot_be_written_is_sent_again_and_counts_once(
    gateway: Gateway, table: str, tmp_path: Path
) -> None:
    request_id = gateway.client.get("/generate/audio?prompt=hello").headers["x-request-id"]
    told = receipt(request_id)
    with away(tmp_path, table):
        refused = post(gateway, told)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "true")
    assert post(gateway, told).status_code == 204
    assert entry_of(gateway, request_id)["units"] == {"audio_seconds": 2.5}
