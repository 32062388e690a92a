import asyncio
import csv
import io
import logging
import sqlite3
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import IntegrityError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import Caller
from gateway.database.database import NEWEST, VERSION_TABLE, open_database
from gateway.database.migrate import alembic_config
from gateway.database.types import Tables
from gateway.errors import NoSuchPlace
from gateway.routes.usage import CSV_COLUMNS, OTHER_CSV_COLUMNS, CsvResponse, inert, router
from gateway.usage import queries
from gateway.usage.log import UsageLog, append
from gateway.usage.queries import Window
from gateway.usage.schema import Entry, Record, Row, Usage
from gateway.usage.writer import Writer

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
EVERYTHING = Window()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "usage.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def make_record(number: int = 0, **changes: Any) -> Record:
    record = Record(
        request_id=f"req-{number}",
        started_at=NOON + timedelta(seconds=number),
        method="POST",
        endpoint="/v1/images/generations",
        client_address="203.0.113.9",
        response_seconds=1.5,
        first_byte_seconds=0.25,
        status=200,
        bytes_out=1234,
        ending="complete",
        successful=True,
        caller="key-1",
        owner="ann",
        route="/v1/images/generations",
        model="tiny-sd",
        modality="image",
        prompt=None,
        output=None,
    )
    return replace(record, **changes)


def make_entry(record: Record, number: int) -> Entry:
    return Entry(**vars(record), id=number, units={}, queue_seconds=None, run_seconds=None)


def ids(entries: Sequence[Record]) -> list[str]:
    return [entry.request_id for entry in entries]


@asynccontextmanager
async def open_log(url: str, busy_seconds: float = 30) -> AsyncGenerator[UsageLog]:
    async with open_database(url, busy_seconds=busy_seconds) as database, UsageLog.open(database) as usage:
        yield usage


@asynccontextmanager
async def filled_log(url: str, records: Sequence[Record]) -> AsyncGenerator[UsageLog]:
    async with open_log(url) as usage:
        for record in records:
            usage.put(record)
        await usage.flush()
        yield usage


class Known:
    """Everybody is the same caller."""

    def __init__(self, app: ASGIApp, caller: Caller) -> None:
        self._app, self._caller = app, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["caller"] = self._caller
        await self._app(scope, receive, send)


@asynccontextmanager
async def client_of(usage: UsageLog, caller: Caller = Caller()) -> AsyncGenerator[httpx.AsyncClient]:  # noqa: B008 - frozen
    app = FastAPI()
    app.include_router(router)
    app.state.usage = usage
    app.add_middleware(Known, caller=caller)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@contextmanager
def warned_event(logger_name: str) -> Iterator[asyncio.Event]:
    """Give an event that is set once the logger warns."""
    warned = asyncio.Event()
    watch = logging.Handler(logging.WARNING)
    watch.emit = lambda record: warned.set()  # type: ignore[method-assign]
    logging.getLogger(logger_name).addHandler(watch)
    try:
        yield warned
    finally:
        logging.getLogger(logger_name).removeHandler(watch)


class Shelf:
    """A database of the writer's kind that opens when told to."""

    def __init__(self, *errors: Exception) -> None:
        self.batches: list[list[Record]] = []
        self.errors = list(errors)
        self.is_asked = asyncio.Event()
        self.is_open = asyncio.Event()

    async def write(self, records: Sequence[Record]) -> None:
        self.is_asked.set()
        if self.errors:
            raise self.errors.pop(0)
        await self.is_open.wait()
        self.batches.append(list(records))


class TestLog:
    async def test_what_is_put_is_read_back(self, url: str) -> None:
        record = make_record(ending="left", first_byte_seconds=None, successful=False)
        async with filled_log(url, [record]) as usage:
            assert await usage.page(EVERYTHING, 10) == [make_entry(record, 1)]

    async def test_rows_survive_reopening(self, url: str) -> None:
        async with filled_log(url, [make_record(1)]):
            pass
        async with filled_log(url, [make_record(2)]) as usage:
            assert ids(await usage.page(EVERYTHING, 10)) == ["req-2", "req-1"]

    async def test_closing_writes_what_is_queued(self, url: str) -> None:
        async with open_log(url) as usage:
            for number in range(1200):
                usage.put(make_record(number))
        async with open_log(url) as reopened:
            assert len(await reopened.page(EVERYTHING, 2000)) == 1200
        assert usage.dropped == 0

    async def test_two_gateways_share_one_file(self, url: str) -> None:
        async def serve(name: str) -> None:
            async with open_log(url) as usage:
                for number in range(300):
                    usage.put(make_record(number, request_id=f"{name}-{number}"))
                    await asyncio.sleep(0)

        await asyncio.gather(serve("one"), serve("two"))

        async with open_log(url) as usage:
            written = ids(await usage.page(EVERYTHING, 1000))
        assert sorted(written) == sorted(f"{name}-{number}" for name in ("one", "two") for number in range(300))

    def test_gateways_that_start_at_once_all_start(self, url: str) -> None:
        async def start_and_stop(number: int) -> None:
            async with open_log(url) as usage:
                usage.put(make_record(number))

        async def count() -> int:
            async with open_log(url) as usage:
                return len(await usage.page(EVERYTHING, 100))

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda number: asyncio.run(start_and_stop(number)), range(4)))

        assert asyncio.run(count()) == 4

    async def test_logs_of_different_files_open_at_once(self, tmp_path: Path) -> None:
        async def start_and_stop(name: str) -> int:
            async with filled_log(f"sqlite+aiosqlite:///{tmp_path / name}", [make_record()]) as usage:
                return len(await usage.page(EVERYTHING, 10))

        assert await asyncio.gather(*map(start_and_stop, "abcd")) == [1, 1, 1, 1]

    async def test_a_locked_database_delays_rows_but_loses_none(self, url: str, path: Path) -> None:
        async with open_log(url, busy_seconds=0) as usage:
            with closing(sqlite3.connect(path, isolation_level=None)) as other, warned_event("gateway") as failed:
                other.execute("BEGIN EXCLUSIVE")
                for number in range(3):
                    usage.put(make_record(number))
                await failed.wait()
                usage.put(make_record(3))
                other.execute("ROLLBACK")
                await usage.flush()
            assert ids(await usage.page(EVERYTHING, 10)) == ["req-3", "req-2", "req-1", "req-0"]
            assert usage.dropped == 0

    async def test_text_no_database_would_take_is_made_storable(self, url: str) -> None:
        hostile = "/v1/\0\udc80\N{SNOWMAN}" + "x" * 5000
        async with filled_log(url, [make_record(endpoint=hostile)]) as usage:
            (entry,) = await usage.page(EVERYTHING, 10)
        assert entry.endpoint.startswith("/v1/\N{REPLACEMENT CHARACTER}?\N{SNOWMAN}xx")
        assert len(entry.endpoint) == 2048


class TestWriter:
    async def test_overflow_is_dropped_and_counted(self) -> None:
        registry = CollectorRegistry()
        counter = Counter("dropped", "Records that were not written.", registry=registry)
        shelf = Shelf()
        async with Writer(shelf.write, capacity=5, batch_rows=2, dropped=counter) as writer:
            writer.put(make_record(0))
            writer.put(make_record(1))
            await shelf.is_asked.wait()
            for number in range(2, 9):
                writer.put(make_record(number))
            assert writer.dropped == 4
            assert registry.get_sample_value("dropped_total") == 4
            shelf.is_open.set()
        assert [ids(batch) for batch in shelf.batches] == [["req-0", "req-1"], ["req-2", "req-3"], ["req-4"]]

    async def test_records_wait_for_each_other(self) -> None:
        shelf = Shelf()
        shelf.is_open.set()
        async with Writer(shelf.write, batch_seconds=3600) as writer:
            for number in range(4):
                writer.put(make_record(number))
                await asyncio.sleep(0)
            await writer.flush()
        assert [len(batch) for batch in shelf.batches] == [4]

    async def test_a_lone_record_does_not_wait_forever(self) -> None:
        shelf = Shelf()
        async with Writer(shelf.write, batch_seconds=0.01) as writer:
            writer.put(make_record())
            await shelf.is_asked.wait()
            shelf.is_open.set()

    async def test_a_server_that_is_away_is_asked_again(self) -> None:
        shelf = Shelf(ConnectionRefusedError(), TimeoutError())
        shelf.is_open.set()
        async with Writer(shelf.write, retry_seconds=(0, 0)) as writer:
            writer.put(make_record())
            await writer.flush()
        assert [ids(batch) for batch in shelf.batches] == [["req-0"]]

    async def test_rows_a_database_refuses_do_not_hold_up_the_others(self) -> None:
        shelf = Shelf(IntegrityError("INSERT", {}, ValueError("NOT NULL")))
        shelf.is_open.set()
        async with Writer(shelf.write) as writer:
            writer.put(make_record(0))
            await writer.flush()
            writer.put(make_record(1))
        assert [ids(batch) for batch in shelf.batches] == [["req-1"]]
        assert writer.dropped == 1

    async def test_closing_does_not_wait_for_ever(self) -> None:
        shelf = Shelf()
        async with Writer(shelf.write, close_seconds=0.01) as writer:
            writer.put(make_record())
        assert shelf.batches == []
        assert writer.dropped == 1

    async def test_what_is_put_after_closing_is_counted_as_dropped(self) -> None:
        async with Writer(Shelf().write) as writer:
            pass
        writer.put(make_record())
        assert writer.dropped == 1


class TestQueries:
    async def test_the_newest_come_first_whatever_the_order_of_writing(self, url: str) -> None:
        async with filled_log(url, [make_record(2), make_record(3), make_record(1)]) as usage:
            assert ids(await usage.page(EVERYTHING, 2)) == ["req-3", "req-2"]

    async def test_since_is_included_and_until_is_not(self, url: str) -> None:
        async with filled_log(url, [make_record(number) for number in range(5)]) as usage:
            window = Window(since=NOON + timedelta(seconds=1), until=NOON + timedelta(seconds=3))
            assert ids(await usage.page(window, 10)) == ["req-2", "req-1"]

    @pytest.mark.parametrize(
        ("num_rows", "sizes"), [(None, [3, 3, 1]), (6, [3, 3]), (7, [3, 3, 1]), (4, [3, 1]), (100, [3, 3, 1])]
    )
    async def test_pages_are_small_and_miss_nothing(self, url: str, num_rows: int | None, sizes: list[int]) -> None:
        at_once = [make_record(number, started_at=NOON) for number in range(7)]
        async with open_database(url) as database:
            await append(database, at_once)
            pages = [page async for page in queries.pages(database, EVERYTHING, num_rows, page_rows=3)]
        assert [len(page) for page in pages] == sizes
        newest_first = ids(at_once)[::-1]
        assert ids([entry for page in pages for entry in page]) == newest_first[: sum(sizes)]


class TestMigrations:
    async def test_upgrading_twice_changes_nothing(self, url: str, path: Path) -> None:
        async with open_log(url):
            pass
        with closing(sqlite3.connect(path)) as connection:
            before = connection.execute("SELECT * FROM sqlite_master").fetchall()
            assert connection.execute("SELECT version_num FROM atelier_version").fetchall() == [(NEWEST,)]
        async with open_log(url):
            pass
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT * FROM sqlite_master").fetchall() == before

    async def test_migrations_build_what_the_schema_says(self, url: str) -> None:
        def differences(connection: Connection) -> list[Any]:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            return list(compare_metadata(context, Tables.metadata))

        async with open_database(url) as database, database.connect() as connection:
            assert await connection.run_sync(differences) == []

    async def test_downgrading_takes_the_table_away_and_upgrading_brings_it_back(self, url: str) -> None:
        def downgrade(connection: Connection) -> list[str]:
            command.downgrade(alembic_config(connection, VERSION_TABLE), "base")
            return inspect(connection).get_table_names()

        async with open_database(url) as database, database.begin() as connection:
            assert await connection.run_sync(downgrade) == [VERSION_TABLE]
        async with filled_log(url, [make_record()]) as usage:
            assert len(await usage.page(EVERYTHING, 10)) == 1

    def test_a_row_has_its_columns(self) -> None:
        assert {field.name for field in fields(Row)} == set(Usage.__table__.columns.keys())

    async def test_readers_do_not_stop_the_writer(self, url: str, path: Path) -> None:
        async with open_log(url):
            pass
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


class TestJson:
    async def test_an_empty_log_is_an_empty_list(self, url: str) -> None:
        async with open_log(url) as usage, client_of(usage) as client:
            response = await client.get("/v1/usage")
        assert response.json() == {"object": "list", "data": [], "has_more": False}

    async def test_an_entry_says_all_that_is_known(self, url: str) -> None:
        async with filled_log(url, [make_record()]) as usage, client_of(usage) as client:
            response = await client.get("/v1/usage")
        assert response.json()["data"] == [
            {
                "id": 1,
                "request_id": "req-0",
                "started_at": "2026-07-01T12:00:00Z",
                "method": "POST",
                "endpoint": "/v1/images/generations",
                "client_address": "203.0.113.9",
                "response_seconds": 1.5,
                "first_byte_seconds": 0.25,
                "status": 200,
                "bytes_out": 1234,
                "ending": "complete",
                "successful": True,
                "caller": "key-1",
                "owner": "ann",
                "route": "/v1/images/generations",
                "model": "tiny-sd",
                "modality": "image",
                "prompt": None,
                "output": None,
                "units": {},
                "queue_seconds": None,
                "run_seconds": None,
            }
        ]

    async def test_following_after_reads_every_entry_once(self, url: str) -> None:
        records = [make_record(number, started_at=NOON + timedelta(seconds=number // 3)) for number in range(7)]
        seen: list[str] = []
        async with filled_log(url, records) as usage, client_of(usage) as client:
            page = (await client.get("/v1/usage", params={"limit": 3})).json()
            seen += [entry["request_id"] for entry in page["data"]]
            while page["has_more"]:
                params = {"limit": 3, "after": page["data"][-1]["id"]}
                page = (await client.get("/v1/usage", params=params)).json()
                seen += [entry["request_id"] for entry in page["data"]]
        assert seen == ids(records)[::-1]

    async def test_a_place_that_is_not_there_is_not_taken_for_the_end(self, url: str) -> None:
        async with filled_log(url, [make_record()]) as usage:
            assert await usage.page(Window(after=1), 10) == []
            with pytest.raises(NoSuchPlace):
                await usage.page(Window(after=2), 10)
            with pytest.raises(NoSuchPlace):
                await anext(usage.pages(Window(after=2)))

    async def test_a_page_is_bounded_and_says_that_there_is_more(self, url: str) -> None:
        async with (
            filled_log(url, [make_record(number) for number in range(1001)]) as usage,
            client_of(usage) as client,
        ):
            by_itself = (await client.get("/v1/usage")).json()
            at_most = (await client.get("/v1/usage", params={"limit": 10**30})).json()
        assert (len(by_itself["data"]), by_itself["has_more"]) == (100, True)
        assert (len(at_most["data"]), at_most["has_more"]) == (1000, True)

    @pytest.mark.parametrize("since", ["2026-07-01T12:00:02Z", "2026-07-01T14:00:02+02:00", "2026-07-01T12:00:02"])
    async def test_a_time_is_understood_in_any_zone(self, url: str, since: str) -> None:
        async with filled_log(url, [make_record(number) for number in range(4)]) as usage, client_of(usage) as client:
            response = await client.get("/v1/usage", params={"since": since})
        assert [entry["request_id"] for entry in response.json()["data"]] == ["req-3", "req-2"]

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "since=yesterday",
            "since=0001-01-01T00:00:00%2B14:00",
            f"after={2**63}",
            "format=xml",
            "sinse=2026",
        ],
    )
    async def test_a_wrong_query_is_refused(self, url: str, query: str) -> None:
        async with open_log(url) as usage, client_of(usage) as client:
            response = await client.get(f"/v1/usage?{query}")
        assert response.status_code == 422

    def test_the_page_is_documented(self) -> None:
        app = FastAPI()
        app.include_router(router)
        document = app.openapi()
        operation = document["paths"]["/v1/usage"]["get"]
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/csv"}
        assert {parameter["name"] for parameter in operation["parameters"]} == {
            "since",
            "until",
            "limit",
            "after",
            "modality",
            "format",
        }
        entry = document["components"]["schemas"]["Entry"]
        assert all("description" in prop for prop in entry["properties"].values())
        assert set(entry["required"]) == {field.name for field in fields(Entry)}


class TestCsv:
    async def test_the_file_has_the_books_columns(self, url: str) -> None:
        records = [make_record(0), make_record(1, status=503, successful=False, endpoint='/a,"b"\n')]
        async with filled_log(url, records) as usage, client_of(usage) as client:
            response = await client.get("/v1/usage", headers={"accept": "text/csv"})
        assert response.headers["content-type"].startswith("text/csv")
        rows = list(csv.reader(io.StringIO(response.text, newline="")))
        assert [row[:7] for row in rows] == [
            [
                "Request ID",
                "Datetime",
                "Endpoint Triggered",
                "Client IP Address",
                "Response Time",
                "Status Code",
                "Successful",
            ],
            ["req-1", "2026-07-01T12:00:01+00:00", '/a,"b"\n', "203.0.113.9", "1.5", "503", "False"],
            ["req-0", "2026-07-01T12:00:00+00:00", "/v1/images/generations", "203.0.113.9", "1.5", "200", "True"],
        ]
        assert len({len(row) for row in rows}) == 1

    async def test_an_empty_log_is_a_header(self, url: str) -> None:
        async with open_log(url) as usage, client_of(usage) as client:
            response = await client.get("/v1/usage?format=csv")
        assert response.text == ",".join((*CSV_COLUMNS, *OTHER_CSV_COLUMNS)) + "\r\n"

    async def test_the_whole_log_comes_unless_limited(self, url: str) -> None:
        async with (
            filled_log(url, [make_record(number) for number in range(1300)]) as usage,
            client_of(usage) as client,
        ):
            everything = await client.get("/v1/usage?format=csv")
            limited = await client.get("/v1/usage?format=csv&limit=1200")
        assert len(everything.text.splitlines()) == 1 + 1300
        assert len(limited.text.splitlines()) == 1 + 1200

    @pytest.mark.parametrize(
        ("accept", "query", "media_type"),
        [
            ("text/csv", "", "text/csv"),
            ("Text/CSV; charset=utf-8, application/json;q=0.5", "", "text/csv"),
            ("application/json, text/csv", "", "application/json"),
            ("*/*", "", "application/json"),
            ("text/csv", "?format=json", "application/json"),
            ("application/json", "?format=csv", "text/csv"),
        ],
    )
    async def test_the_caller_chooses_the_format(self, url: str, accept: str, query: str, media_type: str) -> None:
        async with open_log(url) as usage, client_of(usage) as client:
            response = await client.get(f"/v1/usage{query}", headers={"accept": accept})
        assert response.headers["content-type"].startswith(media_type)

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
    async def test_a_formula_arrives_as_text(self, url: str, start: str) -> None:
        formula = f"{start}HYPERLINK(0)"
        record = make_record(request_id=formula, endpoint=formula, client_address=formula)
        async with filled_log(url, [record]) as usage, client_of(usage) as client:
            response = await client.get("/v1/usage?format=csv")
        row = list(csv.reader(io.StringIO(response.text, newline="")))[1]
        assert [row[0], row[2], row[3]] == [f"'{formula}"] * 3

    @given(st.text() | st.builds(str.__add__, st.sampled_from("=+-@\t\r"), st.text()))
    def test_no_cell_is_a_formula_and_none_loses_a_character(self, cell: str) -> None:
        assert not inert(cell).startswith(("=", "+", "-", "@", "\t", "\r"))
        assert inert(cell).removeprefix("'") == cell.removeprefix("'")

    async def test_a_log_that_cannot_be_read_is_not_an_empty_file(self, url: str, path: Path) -> None:
        async with open_log(url) as usage, client_of(usage) as client:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("DROP TABLE usage")
            response = await client.get("/v1/usage?format=csv")
        assert response.status_code == 500

    async def test_a_caller_who_leaves_stops_the_reading(self) -> None:
        is_closed = asyncio.Event()

        async def endless() -> AsyncGenerator[list[Entry]]:
            try:
                while True:
                    yield [make_entry(make_record(), 1)]
            finally:
                is_closed.set()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise OSError("gone")

        pages = endless()
        response = CsvResponse(await anext(pages), pages)
        with pytest.raises(ClientDisconnect):
            await response({"type": "http", "asgi": {"spec_version": "2.4"}}, asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert is_closed.is_set()
