"""What is kept: `python -m benchmarks.sizes`; bytes of the database by requests and by jobs, and of Redis by callers.

Rows are written by the gateway's own code: requests with one receipt each, as the log's writer and the workers do; jobs
by a running gateway over the stand-in workers of `benchmarks.jobs`. SQLite, unless `--postgres URL` names an empty
database; `--redis URL` measures that too.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.jobs import Gateway, Worker, accept, jobs_of, serve
from benchmarks.usage import fill
from gateway.callers import Caller
from gateway.database.database import open_database
from gateway.limits import open_limits

NUM_REQUESTS, NUM_JOBS, NUM_CALLERS = 20_000, 300, 5_000


async def size_of(engine: AsyncEngine) -> int:
    """Bytes of the whole database on the disk."""
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            return int(await connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
        await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        pages, page = [await connection.scalar(text(f"PRAGMA page_{name}")) for name in ("count", "size")]
        return int(pages or 0) * int(page or 0)


def say(what: str, num_bytes: int, number: int) -> None:
    """Print bytes for each."""
    sys.stdout.write(f"{what:<40} {num_bytes / number:10,.0f} bytes each (of {number})\n")
    sys.stdout.flush()


async def requests(url: str) -> int:
    """Write requests and say what they take; return how large the database is then."""
    async with open_database(url) as engine:
        before = await size_of(engine)
        await fill(engine, 0, NUM_REQUESTS + 10_000)  # which leaves the last ones to others
        after = await size_of(engine)
    say(f"{engine.dialect.name}: requests with receipts", after - before, NUM_REQUESTS)
    return after


async def size_at(url: str) -> int:
    """How large the database is."""
    async with open_database(url) as engine:
        return await size_of(engine)


async def redis(url: str) -> None:
    """Have callers counted, each with a limit of both kinds and a stream under way, and say what Redis takes."""
    async with Redis.from_url(url) as client:
        before = (await client.info("memory"))["used_memory"]
        async with open_limits(url, "refuse") as limits, AsyncExitStack() as stack:
            for number in range(NUM_CALLERS):
                caller = Caller(id=f"{number:016x}", requests_per_minute=60, concurrent_streams=4)
                await limits.take(caller, stack)
            after = (await client.info("memory"))["used_memory"]
    say("redis: callers with a stream under way", after - before, NUM_CALLERS)


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--postgres", default="")
    options.add_argument("--redis", default="")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = asked.postgres or f"sqlite+aiosqlite:///{folder}/atelier.sqlite3"
        before = asyncio.run(requests(url))
        gateway = Gateway(serve(Worker()), Path(folder), {"ATELIER_DATABASE_URL": url})
        try:
            asyncio.run(jobs_of(gateway, asyncio.run(accept(gateway, NUM_JOBS))))
        finally:
            gateway.close()
        after = asyncio.run(size_at(url))
        say("the same: jobs, with their requests", after - before, NUM_JOBS)
    if asked.redis:
        asyncio.run(redis(asked.redis))


if __name__ == "__main__":
    main()
