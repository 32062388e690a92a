"""Receipts on their way to the gateway: none is lost without being counted, and nobody waits for them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.admission import GatewayOnly
from services.engine.generation import Tally
from services.engine.metrics import Ending
from services.errors import InvalidRequest
from services.receipts import BATCH, Receipts, units_of
from services.schema import ATTEMPT_HEADER, REQUEST_HEADER, TOKEN_HEADER, Receipt, ReceiptBatch
from services.settings import Settings
from tests.services.conftest import LONG, served

TOKEN = "a token that nobody guesses"  # noqa: S105 - it opens nothing


class Ledger:
    """Plays the gateway: says what a test tells it, then takes what comes."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.tokens: set[str] = set()
        self.batches: list[tuple[Receipt, ...]] = []
        self.asked = threading.Semaphore(0)
        self.is_open = threading.Event()
        self.is_open.set()

    @property
    def receipts(self) -> list[Receipt]:
        return [receipt for batch in self.batches for receipt in batch]

    async def __call__(self, request: Request) -> Response:
        self.tokens.add(request.headers[TOKEN_HEADER])
        batch = ReceiptBatch.model_validate_json(await request.body())
        self.asked.release()
        self.is_open.wait(LONG)
        status = self.answers.pop(0) if self.answers else 204
        if status == 204:
            self.batches.append(batch.receipts)
        return Response(status_code=status)


Post = Callable[..., Receipts]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def post(ledger: Ledger) -> Iterator[Post]:
    """Make what sends receipts to the ledger; started, unless told otherwise."""
    with ExitStack() as stack:
        app = Starlette(routes=[Route("/internal/receipts", ledger.__call__, methods=["POST"])])
        url = stack.enter_context(served(app))
        stack.callback(ledger.is_open.set)

        def make(*, is_started: bool = True, **options: Any) -> Receipts:
            settings = Settings(receipts_url=f"{url}/internal/receipts", internal_token=SecretStr(TOKEN))
            receipts = Receipts("text", settings, options.pop("registry", CollectorRegistry()), **options)
            if is_started:
                receipts.start()
                stack.callback(receipts.close)
            return receipts

        yield make


def request_with(**headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw})


def tell(receipts: Receipts, request_id: str, attempt: int = 1, **made: float) -> None:
    request = request_with(**{REQUEST_HEADER: request_id, ATTEMPT_HEADER: str(attempt)})
    receipts.teller(request)(Tally("model", Ending.COMPLETE, made, 3, 0.25, 1.5))


def dropped(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("atelier_receipts_dropped_total", {"modality": "text"})


def test_a_receipt_says_what_was_made_for_whom(ledger: Ledger, post: Post) -> None:
    receipts = post()
    tell(receipts, "request-1", attempt=2, prompt_tokens=5, cached_tokens=0, completion_tokens=7, pieces=3)
    receipts.close()

    (receipt,) = ledger.receipts
    assert receipt.model_dump(exclude={"id"}) == {
        "request_id": "request-1",
        "attempt": 2,
        "modality": "text",
        "model": "model",
        "units": {"tokens": 12, "prompt_tokens": 5, "completion_tokens": 7},
        "iterations": 3,
        "queue_seconds": 0.25,
        "run_seconds": 1.5,
        "ending": "complete",
    }
    assert ledger.tokens == {TOKEN}


def test_receipts_share_their_way_and_all_leave_before_the_end(ledger: Ledger, post: Post) -> None:
    ledger.is_open.clear()
    receipts = post()
    tell(receipts, "first")
    assert ledger.asked.acquire(timeout=LONG)
    for number in range(BATCH + 5):
        tell(receipts, f"request-{number}")
    ledger.is_open.set()
    receipts.close()

    assert [len(batch) for batch in ledger.batches] == [1, BATCH, 5]
    assert [receipt.request_id for receipt in ledger.receipts[1:]] == [f"request-{n}" for n in range(BATCH + 5)]


def test_a_gateway_that_is_away_gets_the_same_receipt_when_it_is_back(ledger: Ledger, post: Post) -> None:
    ledger.answers = [503, 401, 500]
    receipts = post()
    tell(receipts, "patient")
    for _ in range(4):
        assert ledger.asked.acquire(timeout=LONG)
    receipts.close()

    assert [receipt.request_id for receipt in ledger.receipts] == ["patient"]


def test_receipts_that_the_gateway_refuses_do_not_hold_up_the_others(ledger: Ledger, post: Post) -> None:
    ledger.answers = [400]
    receipts = post(registry=(registry := CollectorRegistry()))
    tell(receipts, "refused")
    assert ledger.asked.acquire(timeout=LONG)
    tell(receipts, "next")
    receipts.close()

    assert [receipt.request_id for receipt in ledger.receipts] == ["next"]
    assert dropped(registry) == 1


def test_what_does_not_fit_is_dropped_and_counted(ledger: Ledger, post: Post) -> None:
    ledger.is_open.clear()
    receipts = post(registry=(registry := CollectorRegistry()), capacity=3)
    for number in range(5):
        tell(receipts, f"request-{number}")
    assert dropped(registry) == 2
    ledger.is_open.set()
    receipts.close()

    assert [receipt.request_id for receipt in ledger.receipts] == ["request-0", "request-1", "request-2"]


def test_closing_does_not_wait_for_ever_and_counts_what_is_left(ledger: Ledger, post: Post) -> None:
    ledger.answers = [503] * 1000
    receipts = post(registry=(registry := CollectorRegistry()))
    tell(receipts, "late")
    assert ledger.asked.acquire(timeout=LONG)
    receipts.close(patience=0)

    assert (ledger.receipts, dropped(registry)) == ([], 1)


def test_the_token_is_in_no_log(ledger: Ledger, post: Post, caplog: pytest.LogCaptureFixture) -> None:
    ledger.answers = [503, 400]
    receipts = post()
    tell(receipts, "logged")
    assert ledger.asked.acquire(timeout=LONG)
    receipts.close()

    assert "it answers 503" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("options", [{}, {"receipts_url": "http://127.0.0.1:1/"}, {"internal_token": SecretStr(TOKEN)}])
def test_who_has_no_gateway_tells_nobody(options: dict[str, Any]) -> None:
    receipts = Receipts("text", Settings(**options), CollectorRegistry())
    receipts.start()
    tell(receipts, "alone")
    receipts.close()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", "", "1000"])
def test_an_attempt_that_is_no_number_is_refused_by_its_name(post: Post, value: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        post(is_started=False).teller(request_with(**{REQUEST_HEADER: "request", ATTEMPT_HEADER: value}))
    assert refusal.value.param == ATTEMPT_HEADER


@pytest.mark.parametrize(
    ("made", "units"),
    [
        ({"prompt_tokens": 3, "cached_tokens": 2}, {"tokens": 3, "prompt_tokens": 3, "cached_tokens": 2}),
        ({"images": 1, "pixel_steps": 4096}, {"pixel_steps": 4096}),
        ({"input_characters": 5, "output_samples": 24, "audio_seconds": 0.001}, {"audio_seconds": 0.001}),
        ({"frames": 3, "pixel_steps": 5}, {"frames": 3, "pixel_steps": 5}),
        ({"meshes": 1, "faces": 99}, {"meshes": 1}),
        ({}, {}),
    ],
)
def test_a_receipt_names_the_units_of_its_modality(made: dict[str, float], units: dict[str, float]) -> None:
    assert units_of(made) == units


# --- who may ask ---


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    async def work(request: Request) -> Response:
        return PlainTextResponse("made")

    monkeypatch.setenv("ATELIER_INTERNAL_TOKEN", TOKEN)
    with served(GatewayOnly(Starlette(routes=[Route("/work", work, methods=["GET", "POST"])]))) as url:
        yield url


@pytest.mark.parametrize("headers", [{}, {TOKEN_HEADER: "guessed"}, {TOKEN_HEADER: ""}, {TOKEN_HEADER: TOKEN + "!"}])
def test_work_is_for_the_gateway_alone(guarded: str, headers: dict[str, str]) -> None:
    refused = httpx.post(f"{guarded}/work", headers=headers, timeout=LONG)

    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "not_our_gateway")
    assert TOKEN not in refused.text
    assert httpx.get(f"{guarded}/work", headers=headers, timeout=LONG).text == "made"  # such as its health


def test_the_gateway_is_known_by_the_token(guarded: str) -> None:
    assert httpx.post(f"{guarded}/work", headers={TOKEN_HEADER: TOKEN}, timeout=LONG).text == "made"


@pytest.mark.parametrize("listed", ["old,new", "new, old"])
def test_one_token_may_follow_the_other(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    async def work(request: Request) -> Response:
        return PlainTextResponse("made")

    monkeypatch.setenv("ATELIER_INTERNAL_TOKEN", listed)
    with served(GatewayOnly(Starlette(routes=[Route("/work", work, methods=["POST"])]))) as url:
        statuses = {
            token: httpx.post(f"{url}/work", headers={TOKEN_HEADER: token}, timeout=LONG).status_code
            for token in ("old", "new", listed, "")
        }
    assert statuses == {"old": 200, "new": 200, listed: 401, "": 401}


def test_a_worker_without_a_token_works_for_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(request: Request) -> Response:
        return PlainTextResponse("made")

    monkeypatch.delenv("ATELIER_INTERNAL_TOKEN", raising=False)
    with served(GatewayOnly(Starlette(routes=[Route("/work", work, methods=["POST"])]))) as url:
        assert httpx.post(f"{url}/work", timeout=LONG).text == "made"
