"""The daily roll-up is true after whatever was written in whatever order, and can be made anew."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database.database import open_database
from gateway.usage.housekeeping import BATCH_ROWS, delete_before, kept_in_order
from gateway.usage.log import append
from gateway.usage.queries import Window, page
from gateway.usage.receipts import take
from gateway.usage.rollup import join_late, recount
from gateway.usage.schema import ReceiptRow, Record, Usage, UsageDay
from services.schema import Receipt
from tests.gateway.test_receipts import receipt
from tests.gateway.test_usage import make_record

pytestmark = pytest.mark.anyio

DAY = date(2026, 7, 1)
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def database(folder: Path) -> AsyncGenerator[AsyncEngine]:
    async with open_database(f"sqlite+aiosqlite:///{folder / 'usage.db'}") as engine:
        yield engine


async def rolled_up(engine: AsyncEngine) -> dict[tuple[Any, ...], dict[str, float]]:
    """The roll-up without its zeros, and what adding and taking away leaves of them."""
    async with engine.connect() as connection:
        rows = (await connection.execute(select(UsageDay))).mappings().all()
    keys = ("day", "caller", "owner", "model", "modality")
    return {
        tuple(row[key] for key in keys): {
            name: number for name, number in row.items() if name not in keys and abs(number) > 1e-9
        }
        for row in rows
    }


def summed(records: Sequence[Record], receipts: Sequence[Receipt]) -> dict[tuple[Any, ...], dict[str, float]]:
    """The same by definition: each request on its day, with all that its receipts say."""
    days: dict[tuple[Any, ...], dict[str, float]] = {}
    for record in records:
        own = {told.id: told for told in receipts if told.request_id == record.request_id}.values()
        model = record.model or next((told.model for told in own if told.model), "")
        key = (record.started_at.date(), record.caller, record.owner, model, record.modality)
        day = days.setdefault(key, {})
        numbers = {
            "requests": 1,
            "failures": int(not record.successful),
            "bytes_out": record.bytes_out,
            "response_seconds": record.response_seconds,
        }
        made = [{"queue_seconds": told.queue_seconds, "run_seconds": told.run_seconds, **told.units} for told in own]
        for said in (numbers, *made):
            for name, number in said.items():
                day[name] = day.get(name, 0) + number
    return {key: {name: number for name, number in day.items() if number} for key, day in days.items()}


def check_is(found: dict[tuple[Any, ...], dict[str, float]], expected: dict[tuple[Any, ...], dict[str, float]]) -> None:
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        assert found[key] == pytest.approx(numbers)


REQUESTS = st.fixed_dictionaries(
    {
        "started_at": st.sampled_from([NOON, NOON + timedelta(hours=11, minutes=59), NOON + timedelta(days=1)]),
        "caller": st.sampled_from(["key-1", "key-2"]),
        "model": st.sampled_from(["", "tiny-sd"]),
        "successful": st.booleans(),
        "response_seconds": st.sampled_from([0.0, 0.1, 1.5]),
    }
)
SAID = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["tiny-sd", "bark-small"]),
        "units": st.sampled_from([{}, {"pixel_steps": 4096}, {"tokens": 7, "prompt_tokens": 3}]),
        "queue_seconds": st.sampled_from([0.0, 0.25]),
    }
)


@given(
    asked=st.lists(st.tuples(REQUESTS, st.none() | SAID), max_size=8),
    order=st.randoms(use_true_random=False),
    size=st.integers(1, 4),
)
@examples(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_roll_up_is_the_sum_of_the_rows_and_the_receipts(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[dict[str, Any], Any]], order: Any, size: int
) -> None:
    records = [make_record(number, **fields) for number, (fields, _) in enumerate(asked)]
    receipts = [receipt(f"req-{number}", **said) for number, (_, said) in enumerate(asked) if said is not None]
    writings: list[Record | Receipt] = [*records, *receipts, *receipts[:2]]  # some twice
    order.shuffle(writings)
    async with database(tmp_path_factory.mktemp("rollup")) as engine:
        for start in range(0, len(writings), size):
            batch = writings[start : start + size]
            await take(engine, [told for told in batch if isinstance(told, Receipt)])
            if seen := [record for record in batch if isinstance(record, Record)]:
                await append(engine, seen)
        check_is(await rolled_up(engine), summed(records, receipts))

        for day in (DAY, DAY + timedelta(days=1)):
            await recount(engine, day)
        check_is(await rolled_up(engine), summed(records, receipts))


async def test_a_roll_up_that_went_wrong_is_made_anew(tmp_path: Path) -> None:
    records, receipts = [make_record(1), make_record(2)], [receipt("req-1")]
    async with database(tmp_path) as engine:
        await append(engine, records)
        await take(engine, receipts)
        async with engine.begin() as connection:
            await connection.execute(update(UsageDay).values(requests=99, tokens=5))
        await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "gateway.usage"],
            env={
                **os.environ,
                "ATELIER_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'usage.db'}",
                "ATELIER_USAGE_RETENTION_DAYS": "0",
            },
            cwd=Path(__file__).parents[2],
            check=True,
        )

        check_is(await rolled_up(engine), summed(records, receipts))


async def test_a_receipt_and_a_row_that_did_not_see_each_other_are_joined(tmp_path: Path) -> None:
    async with database(tmp_path) as engine:
        await append(engine, [make_record(1, request_id="other")])
        await take(engine, [receipt("req-1")])
        async with engine.begin() as connection:
            await connection.execute(update(Usage).values(request_id="req-1"))  # as if it had just been committed
        await join_late(engine)
        await join_late(engine)

        check_is(await rolled_up(engine), summed([make_record(1)], [receipt("req-1")]))
        (entry,) = await page(engine, Window(), 10)
        assert entry.units == {"audio_seconds": 2.5}


async def test_two_gateways_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    numbers = count()

    async def serve() -> tuple[list[Record], list[Receipt]]:
        records, receipts = [], []
        async with database(tmp_path) as engine:
            for _ in range(12):
                some = [make_record(next(numbers)) for _ in range(5)]
                told = [receipt(record.request_id) for record in some]
                await asyncio.gather(append(engine, some), take(engine, told))
                records += some
                receipts += told
        return records, receipts

    one, two = await asyncio.gather(serve(), serve())
    async with database(tmp_path) as engine:
        await join_late(engine)
        check_is(await rolled_up(engine), summed(one[0] + two[0], one[1] + two[1]))


async def test_old_rows_go_and_the_roll_up_stays(tmp_path: Path) -> None:
    old = [make_record(number, started_at=NOON - timedelta(days=1)) for number in range(BATCH_ROWS + 7)]
    kept = make_record(9999)
    async with database(tmp_path) as engine:
        await append(engine, [*old, kept])
        await take(engine, [receipt("req-0"), receipt("req-9999"), receipt("never came")])
        before = await rolled_up(engine)
        await delete_before(engine, DAY)

        assert [entry.request_id for entry in await page(engine, Window(), 100)] == ["req-9999"]
        assert await rolled_up(engine) == before
        async with engine.connect() as connection:
            left = set((await connection.scalars(select(ReceiptRow.request_id))).all())
        assert left == {"req-9999", "never came"}  # which came today

        await delete_before(engine, date.today() + timedelta(days=1))
        async with engine.connect() as connection:
            assert (await connection.scalars(select(ReceiptRow.id))).all() == []


@pytest.mark.parametrize("retention_days", [0, 30])
async def test_what_is_kept_for_ever_is_kept(tmp_path: Path, retention_days: int) -> None:
    now = datetime.now(UTC)
    async with database(tmp_path) as engine:
        await append(engine, [make_record(1, started_at=now - timedelta(days=400)), make_record(2, started_at=now)])
        async with kept_in_order(engine, retention_days):
            await take(engine, [receipt("req-2")])
            for _ in range(1000):
                found = [entry.request_id for entry in await page(engine, Window(), 10)]
                if len(found) == (2 if retention_days == 0 else 1):
                    break
        assert found == (["req-2", "req-1"] if retention_days == 0 else ["req-2"])
