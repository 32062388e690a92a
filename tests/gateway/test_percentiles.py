"""`/v1/usage/summary?percentiles=…`: how long requests took, all of them, on both databases."""

import csv
import io
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.callers import Caller
from gateway.database.database import open_database
from gateway.routes import summary
from gateway.usage.housekeeping import delete_before
from gateway.usage.log import UsageLog, append
from gateway.usage.receipts import take
from gateway.usage.schema import Record
from services.schema import Receipt
from tests.gateway.servers import postgres_server
from tests.gateway.test_receipts import receipt
from tests.gateway.test_usage import Known, make_record

pytestmark = pytest.mark.anyio

PATH = "/v1/usage/summary"
NUMBERS = count()
MEASURES = "first_byte_seconds,response_seconds,run_seconds"
ANYBODY, BOB = Caller(), Caller(id="key-2", owner="bob", scopes=frozenset({"audio"}))
FIRST = datetime(2026, 6, 29, 22, tzinfo=UTC)
DRAWN: dict[str, Any]
SPOKEN: dict[str, Any]
DRAWN, SPOKEN = (
    {"caller": "key-1", "owner": "ann", "model": "tiny-sd", "modality": "image"},
    {"caller": "key-2", "owner": "bob", "model": "bark-small", "modality": "audio"},
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'usage.db'}"
    first, name = make_url(request.getfixturevalue("server")), f"usage_{next(NUMBERS)}"
    engine = create_async_engine(first, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    await engine.dispose()
    return first.set(database=name).render_as_string(hide_password=False)


@asynccontextmanager
async def asked_by(
    caller: Caller, url: str, records: Sequence[Record], receipts: Sequence[Receipt] = (), kept: date | None = None
) -> AsyncGenerator[httpx.AsyncClient]:
    """A log of some requests; of those before the day `kept`, the totals alone are kept."""
    async with open_database(url) as database, UsageLog.open(database) as log:
        await append(database, records)
        await take(database, receipts)
        if kept is not None:
            await delete_before(database, kept)
        app = FastAPI()
        app.include_router(summary.router)
        app.state.usage = log
        app.add_middleware(Known, caller=caller)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            yield client


async def answer(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    asked = {"since": "2026-06-29", "until": "2026-07-03", "percentiles": MEASURES, **query}
    response = await client.get(PATH, params=asked)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["data"]
    return found


def some(number: int, fields: dict[str, Any], begun: datetime = FIRST) -> tuple[list[Record], list[Receipt]]:
    """Requests in any order; the one of rank k took k seconds, a tenth of it to the first byte, k / 2 of the model."""
    ranks = [7 * n % number + 1 for n in range(number)]
    assert sorted(ranks) == list(range(1, number + 1))
    name = f"{fields['caller']} {begun}"
    records = [
        make_record(
            request_id=f"{name} {n}",
            started_at=begun + timedelta(seconds=n),
            response_seconds=float(k),
            first_byte_seconds=k / 8,
            **fields,
        )
        for n, k in enumerate(ranks)
    ]
    told = [receipt(f"{name} {n}", run_seconds=k / 2) for n, k in enumerate(ranks)]
    return records, told


async def test_all_requests_are_ranked_however_many_they_are(url: str) -> None:
    """2,020 of ann's, and 20 of bob's: the nearest rank of 95 of 100 is the 1,919th, and the 19th."""
    drawn, spoken = some(2020, DRAWN), some(20, SPOKEN)
    async with asked_by(ANYBODY, url, drawn[0] + spoken[0], drawn[1] + spoken[1]) as client:
        [bucket] = await answer(client, bucket_width="all", group_by="modality")

    spoken_total, drawn_total = bucket["results"]
    assert (drawn_total["modality"], drawn_total["requests"]) == ("image", 2020)
    assert drawn_total["percentiles"] == {
        "first_byte_seconds": {"p50": 1010 / 8, "p95": 1919 / 8},
        "response_seconds": {"p50": 1010, "p95": 1919},
        "run_seconds": {"p50": 505, "p95": 959.5},
    }
    assert spoken_total["percentiles"] == {
        "first_byte_seconds": {"p50": 10 / 8, "p95": 19 / 8},
        "response_seconds": {"p50": 10, "p95": 19},
        "run_seconds": {"p50": 5, "p95": 9.5},
    }


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        ("1h", {"2026-06-29T22:00:00Z": 2, "2026-06-30T01:00:00Z": 6}),
        ("1d", {"2026-06-29": 2, "2026-06-30": 6}),
        ("1mo", {"2026-06-29": 3}),
        ("all", {"2026-06-29": 3}),
    ],
)
async def test_times_are_ranked_in_each_stretch_of_time(url: str, width: str, expected: dict[str, float]) -> None:
    evening, _ = some(3, DRAWN)
    night = [
        make_record(request_id=f"night {n}", started_at=FIRST + timedelta(hours=3), response_seconds=float(n), **DRAWN)
        for n in (5, 6, 7)
    ]
    async with asked_by(ANYBODY, url, evening + night) as client:
        buckets = await answer(
            client, bucket_width=width, limit=96, until="2026-07-01", group_by="model", percentiles="response_seconds"
        )

    assert {
        bucket["start"]: total["percentiles"]["response_seconds"]["p50"]
        for bucket in buckets
        for total in bucket["results"]
    } == expected


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("caller", [("key-1", 2), ("key-2", 3)]),
        ("owner", [("ann", 2), ("bob", 3)]),
        ("model", [("bark-small", 3), ("tiny-sd", 2)]),
        ("", [(None, 2)]),
    ],
)
async def test_times_are_told_apart_as_the_totals_are(
    url: str, group: str, expected: list[tuple[str | None, float]]
) -> None:
    async with asked_by(ANYBODY, url, some(3, DRAWN)[0] + some(5, SPOKEN)[0]) as client:
        asked = {"group_by": group} if group else {}
        [bucket] = await answer(client, bucket_width="all", **asked)

    assert [
        (total[group or "caller"], total["percentiles"]["response_seconds"]["p50"]) for total in bucket["results"]
    ] == expected


async def test_only_what_is_asked_for_is_ranked(url: str) -> None:
    async with asked_by(ANYBODY, url, some(3, DRAWN)[0] + some(5, SPOKEN)[0]) as client:
        [bucket] = await answer(client, bucket_width="all", percentiles="response_seconds", modality="audio")
        [plain] = (await client.get(PATH, params={"since": "2026-06-29", "bucket_width": "all"})).json()["data"]

    assert bucket["results"][0]["percentiles"] == {"response_seconds": {"p50": 3, "p95": 5}}
    assert plain["results"][0]["percentiles"] == {}


async def test_a_key_learns_nothing_of_others_times(url: str) -> None:
    async with asked_by(BOB, url, some(3, DRAWN)[0] + some(5, SPOKEN)[0]) as client:
        [bucket] = await answer(client, bucket_width="all", percentiles="response_seconds")
        [none] = await answer(client, bucket_width="all", caller="key-1")

    assert bucket["results"][0]["percentiles"] == {"response_seconds": {"p50": 3, "p95": 5}}
    assert none["results"] == []


async def test_the_models_time_is_of_all_attempts_and_what_is_not_known_is_not_ranked(url: str) -> None:
    silent = make_record(2, first_byte_seconds=None, modality="audio", model="bark-small", started_at=FIRST)
    worked = make_record(1, first_byte_seconds=0.5, started_at=FIRST)
    told = [receipt("req-1", attempt=attempt, run_seconds=1.5) for attempt in (1, 2)]
    async with asked_by(ANYBODY, url, [silent, worked], told) as client:
        [bucket] = await answer(client, bucket_width="all", group_by="modality")
        [whole] = await answer(client, bucket_width="all")

    spoken, drawn = (total["percentiles"] for total in bucket["results"])
    assert (spoken["first_byte_seconds"], spoken["run_seconds"]) == (None, None)
    assert spoken["response_seconds"] == {"p50": 1.5, "p95": 1.5}
    assert drawn["run_seconds"] == whole["results"][0]["percentiles"]["run_seconds"] == {"p50": 3, "p95": 3}
    assert whole["results"][0]["percentiles"]["first_byte_seconds"] == {"p50": 0.5, "p95": 0.5}


async def test_totals_stay_where_the_rows_are_gone(url: str) -> None:
    later = some(3, DRAWN, FIRST + timedelta(days=1))
    async with asked_by(ANYBODY, url, some(5, DRAWN)[0] + later[0], kept=date(2026, 6, 30)) as client:
        buckets = await answer(client, percentiles="response_seconds", until="2026-07-01")

    assert [
        (total["requests"], total["percentiles"]["response_seconds"])
        for bucket in buckets
        for total in bucket["results"]
    ] == [(5, None), (3, {"p50": 2, "p95": 3})]


async def test_a_file_has_them_too(url: str) -> None:
    async with asked_by(ANYBODY, url, some(3, DRAWN)[0]) as client:
        query = {"since": "2026-06-29", "until": "2026-06-30", "percentiles": "response_seconds,run_seconds"}
        content = (await client.get(PATH, params=query, headers={"accept": "text/csv"})).text
    [line] = csv.DictReader(io.StringIO(content))

    assert [line["Response Seconds P50"], line["Response Seconds P95"]] == ["2.0", "3.0"]
    assert [line["Run Seconds P50"], line["Run Seconds P95"]] == ["", ""]


async def test_a_time_that_is_not_kept_is_refused(tmp_path: Path) -> None:
    async with asked_by(ANYBODY, f"sqlite+aiosqlite:///{tmp_path / 'usage.db'}", [make_record()]) as client:
        assert (await client.get(PATH, params={"percentiles": "bytes_out"})).status_code == 422
