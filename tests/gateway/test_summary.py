"""`/v1/usage/summary`: what everybody used, seen by those who may see it."""

import csv
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.callers import Caller
from gateway.database.database import open_database
from gateway.routes import summary, usage
from gateway.usage.log import UsageLog
from tests.gateway.test_receipts import receipt
from tests.gateway.test_usage import Known, make_record

pytestmark = pytest.mark.anyio

ANYBODY = Caller()
FIRST = datetime(2026, 6, 29, 12, tzinfo=UTC)
PATH = "/v1/usage/summary"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def asked_by(caller: Caller, folder: Path) -> AsyncGenerator[httpx.AsyncClient]:
    """A log of four days, two requests each: one of key-1 that draws, one of key-2 that speaks, and fails at first."""
    async with open_database(f"sqlite+aiosqlite:///{folder / 'usage.db'}") as database, UsageLog.open(database) as log:
        for day in range(4):
            begin = FIRST + timedelta(days=day)
            log.put(make_record(2 * day, started_at=begin, caller="key-1"))
            spoken = {"caller": "key-2", "owner": "bob", "model": "bark-small", "modality": "audio"}
            log.put(make_record(2 * day + 1, started_at=begin, successful=day > 0, **spoken))
            drawn = receipt(f"req-{2 * day}", model="tiny-sd", modality="image", units={"pixel_steps": 4096})
            await log.take([drawn, receipt(f"req-{2 * day + 1}")])
        await log.flush()
        app = FastAPI()
        app.include_router(usage.router)
        app.include_router(summary.router)
        app.state.usage = log
        app.add_middleware(Known, caller=caller)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            yield client


async def answer(folder: Path, /, **query: Any) -> dict[str, Any]:
    async with asked_by(ANYBODY, folder) as client:
        response = await client.get(PATH, params={"since": "2026-06-29", "until": "2026-07-03", **query})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def shape(found: dict[str, Any], *names: str) -> list[Any]:
    """The days of each bucket, and what its groups say of some things."""
    return [
        (bucket["start"][5:], bucket["end"][5:], [tuple(total[name] for name in names) for total in bucket["results"]])
        for bucket in found["data"]
    ]


async def test_hours_are_told_apart_and_say_what_their_days_do(tmp_path: Path) -> None:
    query = {"since": "2026-06-29T10:30:00Z", "until": "2026-06-29T14:00:00Z", "group_by": "caller"}
    found = await answer(tmp_path, bucket_width="1h", **query)

    ends = [(bucket["start"], bucket["end"]) for bucket in found["data"]]
    assert ends == [(f"2026-06-29T{hour}:00:00Z", f"2026-06-29T{hour + 1}:00:00Z") for hour in range(10, 14)]
    assert not found["has_more"]
    [day] = (await answer(tmp_path / "again", group_by="caller", until="2026-06-30"))["data"]
    assert [bucket["results"] for bucket in found["data"]] == [[], [], day["results"], []]
    assert day["results"][0]["units"] == {"pixel_steps": 4096}


async def test_hours_come_in_pages_and_only_to_those_who_may_see_them(tmp_path: Path) -> None:
    async with asked_by(Caller(id="key-2", scopes=frozenset({"audio"})), tmp_path) as client:
        query = {"bucket_width": "1h", "since": "2026-06-29", "until": "2026-07-30"}
        found = (await client.get(PATH, params={**query, "limit": 366})).json()
        assert (len(found["data"]), found["has_more"]) == (168, True)
        assert sum(total["requests"] for bucket in found["data"] for total in bucket["results"]) == 4
        assert len((await client.get(PATH, params={"bucket_width": "1h"})).json()["data"]) == 24


async def test_the_log_is_read_by_modality(tmp_path: Path) -> None:
    async with asked_by(ANYBODY, tmp_path) as client:
        found = [
            (await client.get("/v1/usage", params={"modality": names})).json() for names in ("audio", "audio,image")
        ]
        assert [len(page["data"]) for page in found] == [4, 8]
        assert {entry["modality"] for entry in found[0]["data"]} == {"audio"}
        assert (await client.get("/v1/usage", params={"modality": "smell"})).status_code == 422


async def test_everything_in_one_says_all_that_is_counted(tmp_path: Path) -> None:
    found = await answer(tmp_path, bucket_width="all")

    assert found == {
        "object": "page",
        "data": [
            {
                "start": "2026-06-29",
                "end": "2026-07-03",
                "results": [
                    {
                        "caller": None,
                        "owner": None,
                        "model": None,
                        "modality": None,
                        "requests": 8,
                        "failures": 1,
                        "units": {"pixel_steps": 4 * 4096, "audio_seconds": 10.0},
                        "bytes_out": 8 * 1234,
                        "response_seconds": 12.0,
                        "queue_seconds": 4.0,
                        "run_seconds": 10.0,
                        "percentiles": {},
                    }
                ],
            }
        ],
        "has_more": False,
    }


async def test_days_and_models_are_told_apart(tmp_path: Path) -> None:
    found = await answer(tmp_path, group_by="model", since="2026-06-28", until="2026-07-01")

    assert shape(found, "model", "requests", "failures") == [
        ("06-28", "06-29", []),
        ("06-29", "06-30", [("bark-small", 1, 1), ("tiny-sd", 1, 0)]),
        ("06-30", "07-01", [("bark-small", 1, 0), ("tiny-sd", 1, 0)]),
    ]


async def test_months_are_the_calendars(tmp_path: Path) -> None:
    found = await answer(tmp_path, group_by="caller,owner", bucket_width="1mo", since="2026-06-30")

    assert shape(found, "caller", "owner", "requests") == [
        ("06-30", "07-01", [("key-1", "ann", 1), ("key-2", "bob", 1)]),
        ("07-01", "07-03", [("key-1", "ann", 2), ("key-2", "bob", 2)]),
    ]


async def test_a_page_ends_and_the_next_goes_on_from_there(tmp_path: Path) -> None:
    first = await answer(tmp_path, limit=3)
    rest = await answer(tmp_path / "again", limit=3, since=first["data"][-1]["end"])

    assert [len(first["data"]), first["has_more"], len(rest["data"]), rest["has_more"]] == [3, True, 1, False]


@pytest.mark.parametrize(
    ("query", "requests"),
    [
        ({"model": "tiny-sd"}, 4),
        ({"model": "tiny-sd,bark-small"}, 8),
        ({"model": ["tiny-sd", "bark-small"], "caller": "key-2"}, 4),
        ({"modality": "audio", "since": "2026-07-02"}, 1),
        ({"until": "2026-06-30T00:00:01"}, 4),
        ({"since": "2026-06-29T23:00"}, 8),
    ],
)
async def test_what_is_added_up_can_be_chosen(tmp_path: Path, query: dict[str, Any], requests: int) -> None:
    found = await answer(tmp_path, bucket_width="all", **query)

    assert [total["requests"] for total in found["data"][0]["results"]] == [requests]


NARROW = Caller(id="key-2", owner="bob", scopes=frozenset({"audio"}))


@pytest.mark.parametrize(
    ("caller", "query", "seen"),
    [
        (ANYBODY, {}, {"key-1", "key-2"}),
        (Caller(id="key-2", scopes=frozenset({"admin"})), {}, {"key-1", "key-2"}),
        (NARROW, {}, {"key-2"}),
        (NARROW, {"caller": "key-1"}, set()),
        (NARROW, {"caller": "key-1,key-2"}, {"key-2"}),
    ],
)
async def test_a_key_sees_its_own_and_an_admin_all(
    tmp_path: Path, caller: Caller, query: dict[str, str], seen: set[str]
) -> None:
    async with asked_by(caller, tmp_path) as client:
        params = {"since": "2026-06-29", "until": "2026-07-03", "bucket_width": "all", "group_by": "caller", **query}
        (bucket,) = (await client.get(PATH, params=params)).json()["data"]
        rows = (await client.get("/v1/usage")).json()["data"]
        lines = list(csv.DictReader(io.StringIO((await client.get("/v1/usage?format=csv")).text)))

    assert {total["caller"] for total in bucket["results"]} == seen
    own = {"key-2"} if caller is NARROW else {"key-1", "key-2"}
    assert {row["caller"] for row in rows} == {line["Caller"] for line in lines} == own


async def test_a_file_has_a_line_for_each_group(tmp_path: Path) -> None:
    async with asked_by(ANYBODY, tmp_path) as client:
        query = {"since": "2026-06-29", "until": "2026-07-01", "group_by": "modality"}
        response = await client.get(PATH, params=query, headers={"accept": "text/csv"})
    lines = list(csv.DictReader(io.StringIO(response.text)))

    assert response.headers["content-type"].startswith("text/csv")
    assert [(line["Start"], line["Modality"], line["Requests"], line["Audio Seconds"]) for line in lines] == [
        ("2026-06-29", "audio", "1", "2.5"),
        ("2026-06-29", "image", "1", "0"),
        ("2026-06-30", "audio", "1", "2.5"),
        ("2026-06-30", "image", "1", "0"),
    ]


async def test_the_last_thirty_days_come_by_themselves(tmp_path: Path) -> None:
    async with asked_by(ANYBODY, tmp_path) as client:
        found = (await client.get(PATH)).json()
    today = datetime.now(UTC).date()

    assert len(found["data"]) == 30
    assert found["data"][-1]["start"] in {str(today), str(today - timedelta(days=1))}  # midnight may pass meanwhile


@pytest.mark.parametrize(
    "query",
    [
        "since=0001-01-01",
        "until=9999-12-31",
        "group_by=route",
        "bucket_width=1m",
        "limit=0",
        "limit=367",
        "modality=smell",
    ],
)
async def test_a_wrong_question_is_refused(tmp_path: Path, query: str) -> None:
    async with asked_by(ANYBODY, tmp_path) as client:
        assert (await client.get(f"{PATH}?{query}")).status_code == 422
