"""The usage log with a million rows: what it takes to write, to turn a page, to add everything up, to delete.

`python -m benchmarks.usage --rows 1000000`, over SQLite in a new folder; below the HTTP routes, in one process.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import get_args
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database.database import open_database
from gateway.usage.housekeeping import delete_before
from gateway.usage.log import append
from gateway.usage.percentiles import Measure
from gateway.usage.queries import Window, page
from gateway.usage.receipts import take
from gateway.usage.rollup import recount
from gateway.usage.schema import Record, Usage
from gateway.usage.summary import Question, summarize
from services.schema import Receipt, Unit

DAYS, CALLERS = 365, 50
LARGE, BATCH = 1000, 200  # requests in a transaction: to fill the log sooner; as the writer has them
NUM_TIMED = 50  # batches
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MODELS: tuple[tuple[str, str, dict[Unit, float]], ...] = (
    ("text", "tinyllama-1.1b-chat", {"tokens": 120, "prompt_tokens": 100, "completion_tokens": 20}),
    ("image", "tiny-sd", {"pixel_steps": 5_242_880}),
    ("audio", "bark-small", {"audio_seconds": 3.2}),
    ("mesh", "shap-e", {"meshes": 1}),
)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def record(number: int, num_rows: int, dice: random.Random) -> Record:
    """Make one of a year's requests."""
    modality, model, _ = MODELS[number % len(MODELS)]
    caller = dice.randrange(CALLERS)
    return Record(
        request_id=f"{number:016x}",
        started_at=BEGIN + number * timedelta(days=DAYS) / num_rows,
        method="POST",
        endpoint=f"/v1/{modality}",
        client_address="203.0.113.9",
        response_seconds=dice.random() * 9,
        first_byte_seconds=dice.random(),
        status=200,
        bytes_out=dice.randrange(10_000),
        ending="complete",
        successful=dice.random() < 0.99,
        caller=f"key-{caller}",
        owner=f"owner-{caller % 7}",
        route=f"/v1/{modality}",
        model=model,
        modality=modality,
        prompt=None,
        output=None,
    )


def receipt(number: int) -> Receipt:
    """Make the receipt of such a request."""
    modality, model, units = MODELS[number % len(MODELS)]
    return Receipt(
        id=UUID(int=number).hex,
        request_id=f"{number:016x}",
        modality=modality,
        model=model,
        units=units,
        iterations=20,
        queue_seconds=0.25,
        run_seconds=2.5,
        ending="complete",
    )


async def timed(work: Awaitable[object]) -> float:
    """Return the milliseconds that `work` takes."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


def batches(start: int, end: int, size: int, num_rows: int) -> Iterator[tuple[list[Record], list[Receipt]]]:
    """Yield requests and their receipts as the writers do."""
    dice = random.Random(start)
    for first in range(start, end, size):
        numbers = range(first, min(first + size, end))
        yield [record(number, num_rows, dice) for number in numbers], [receipt(number) for number in numbers]


async def write(engine: AsyncEngine, name: str, start: int, num_rows: int) -> None:
    """Write as the gateway does, and say what a batch takes."""
    taken = [
        (await timed(append(engine, records)), await timed(take(engine, receipts)))
        for records, receipts in batches(start, start + NUM_TIMED * BATCH, BATCH, num_rows)
    ]
    rows, receipts = (statistics.median(each) for each in zip(*taken, strict=True))
    say(f"{f'{name} batch of {BATCH}':<44} {rows:8.1f} ms rows {receipts:8.1f} ms receipts")


async def fill(engine: AsyncEngine, start: int, num_rows: int) -> None:
    """Write nearly everything."""
    for records, receipts in batches(start, num_rows - NUM_TIMED * BATCH, LARGE, num_rows):
        await append(engine, records)
        await take(engine, receipts)


async def measure(name: str, ask: Callable[[], Awaitable[object]], times: int = 20) -> None:
    """Ask again and again, and print the median and the slowest."""
    taken = [await timed(ask()) for _ in range(times)]
    say(f"{name:<44} {statistics.median(taken):8.1f} ms {max(taken):8.1f} ms at most")


async def scan(engine: AsyncEngine) -> None:
    """Add the rows themselves up: what the roll-up saves."""
    async with engine.connect() as connection:
        await connection.execute(select(Usage.model, func.count(), func.sum(Usage.bytes_out)).group_by(Usage.model))


async def main(num_rows: int, folder: Path) -> None:
    """Fill a new database and measure."""
    file = folder / "usage.sqlite3"
    year = Question(since=BEGIN.date(), until=BEGIN.date() + timedelta(days=DAYS), groups=("caller",))
    month = Question(since=date(2026, 6, 1), until=date(2026, 7, 1), groups=("model",))
    middle = BEGIN + timedelta(days=DAYS / 2)
    async with open_database(f"sqlite+aiosqlite:///{file}") as engine:
        await write(engine, "first", 0, num_rows)
        await fill(engine, NUM_TIMED * BATCH, num_rows)
        await write(engine, "last", num_rows - NUM_TIMED * BATCH, num_rows)
        say(f"{'file':<44} {file.stat().st_size / 1e6:8.0f} MB")
        await measure("newest page of 100", lambda: page(engine, Window(), 100))
        await measure("page of 1000 in the middle", lambda: page(engine, Window(until=middle), 1000))
        await measure("page of 100 of one caller", lambda: page(engine, Window(caller="key-7"), 100))
        await measure("page of 100 after a row in the middle", lambda: page(engine, Window(after=num_rows // 2), 100))
        await measure("summary: 30 days, each by model", lambda: summarize(engine, month, "1d", 31))
        await measure("summary: the year, by caller", lambda: summarize(engine, year, "all", 1))
        await measure("summary: the year's months, by caller", lambda: summarize(engine, year, "1mo", 12))
        times = replace(month, measures=get_args(Measure))
        await measure("percentiles: 30 days, by model", lambda: summarize(engine, times, "all", 1), times=5)
        await measure("percentiles: 30 days, each by model", lambda: summarize(engine, times, "1d", 31), times=5)
        await measure("(the year by model, from the rows themselves)", lambda: scan(engine), times=3)
        await measure("roll-up of a day made anew", lambda: recount(engine, middle.date()), times=5)
        num_days = 10
        taken = await timed(delete_before(engine, BEGIN.date() + timedelta(days=num_days)))
        say(f"{f'delete {num_days} days, {num_rows * num_days // DAYS:,} rows':<44} {taken:8.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(parser.parse_args().rows, Path(temporary)))
