"""The application as a whole: its documentation, browsers from elsewhere, and many callers at once."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any, get_args

import httpx
import pytest

from services.audio.schema import Format
from services.image.schema import OutputFormat
from services.schema import MEDIA_TYPES
from tests.gateway.conftest import LONG, PNG, Gateway, Workers, error_of

SPEECH = "/generate/audio?prompt=hello"
ORIGIN = "https://ui.example"
MEDIA = {
    "/generate/text": "text/plain",
    "/generate/audio": "audio/wav",
    "/generate/image": "image/png",
    "/generate/bentoml/image": "image/png",
    "/generate/video": "video/mp4",
    "/generate/3d": "model/obj",
    "/generate/openai/text": "text/plain",
}

Start = Callable[..., Gateway]


class References(HTMLParser):
    """What a page loads: scripts, styles, icons, pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


class TestDocs:
    @pytest.mark.parametrize(("path", "num_files"), [("/docs", 3), ("/redoc", 2)])
    def test_pages_load_nothing_from_elsewhere(
        self, shared: tuple[Gateway, Workers], path: str, num_files: int
    ) -> None:
        client = shared[0].client
        page = client.get(path)
        assert page.status_code == 200
        assert "://" not in page.text

        references = References(page.text).found
        assert len(references) >= num_files
        for reference in references:
            assert reference.startswith("/")
            file = client.get(reference)
            assert file.status_code == 200
            assert file.content

    @pytest.mark.parametrize("path", ["/docs", "/redoc"])
    def test_pages_find_the_description(self, shared: tuple[Gateway, Workers], path: str) -> None:
        assert "/openapi.json" in shared[0].client.get(path).text

    @pytest.fixture
    def description(self, shared: tuple[Gateway, Workers]) -> dict[str, Any]:
        described: dict[str, Any] = shared[0].client.get("/openapi.json").json()
        return described

    def test_each_of_the_books_routes_shows_its_media_type(self, description: dict[str, Any]) -> None:
        assert {path for path in description["paths"] if path.startswith("/generate/")} == set(MEDIA)
        for path, media_type in MEDIA.items():
            [operation] = description["paths"][path].values()
            assert list(operation["responses"]["200"]["content"]) == [media_type]
            assert operation["description"]

    def test_errors_are_envelopes_and_never_422(self, description: dict[str, Any]) -> None:
        assert "422" not in str(description)
        assert "ValidationError" not in str(description)
        for path in MEDIA:
            [operation] = description["paths"][path].values()
            for status in ("400", "503"):
                schema = {"$ref": "#/components/schemas/ErrorEnvelope"}
                assert operation["responses"][status]["content"] == {"application/json": {"schema": schema}}

    def test_an_upload_is_described_as_one(self, description: dict[str, Any]) -> None:
        assert list(description["paths"]["/generate/video"]["post"]["requestBody"]["content"]) == [
            "multipart/form-data"
        ]
        assert "image" in description["components"]["schemas"]["VideoForm"]["required"]

    def test_a_picture_may_be_a_file_or_named(self, description: dict[str, Any]) -> None:
        for path, field, name in (
            ("/v1/videos", "input_reference", "input_reference"),
            ("/v1/images/edits", "image", "images"),
        ):
            content = description["paths"][path]["post"]["requestBody"]["content"]
            form, named = (
                content[each]["schema"]["properties"] for each in ("multipart/form-data", "application/json")
            )
            assert form[field] == {"type": "string", "format": "binary"}
            assert "image_url" in str(named[name])
            assert {"prompt", "model", "size"} <= form.keys() & named.keys()

    def test_each_format_of_speech_and_pictures_is_described(self, description: dict[str, Any]) -> None:
        for path, words in (("audio/speech", get_args(Format)), ("images/edits", get_args(OutputFormat))):
            described = description["paths"][f"/v1/{path}"]["post"]["responses"]["200"]["content"]
            assert described.keys() - {"application/json"} == {
                *(MEDIA_TYPES[word] for word in words),
                "text/event-stream",
            }

    def test_what_is_only_for_workers_is_not_described(self, description: dict[str, Any]) -> None:
        assert "x-atelier" not in str(description).lower()


class TestBrowsers:
    """CORS."""

    def test_no_browser_from_elsewhere_by_default(self, shared: tuple[Gateway, Workers]) -> None:
        client = shared[0].client
        response = client.get("/livez", headers={"origin": ORIGIN})
        assert not [name for name in response.headers if name.startswith("access-control")]
        asking = {"origin": ORIGIN, "access-control-request-method": "GET"}
        assert client.options("/generate/text", headers=asking).status_code == 405

    @pytest.mark.parametrize("path", [SPEECH, "/no/such/route", "/generate/text"])
    def test_named_origins_may_read_the_answer_and_our_headers(self, start: Start, path: str) -> None:
        client = start(cors_origins=f"{ORIGIN}, https://other.example").client
        response = client.get(path, headers={"origin": ORIGIN})
        assert response.headers["access-control-allow-origin"] == ORIGIN
        exposed = set(re.split(r",\s*", response.headers["access-control-expose-headers"]))
        assert {"x-request-id", "x-api-request-id", "x-response-time", "x-seed", "content-disposition"} <= exposed
        assert {"x-request-id", "x-response-time"} <= set(response.headers)

    def test_named_origins_may_ask_beforehand(self, start: Start) -> None:
        gateway = start(cors_origins=ORIGIN)
        asking = {"access-control-request-method": "POST", "access-control-request-headers": "x-request-id"}
        allowed = gateway.client.options("/generate/video", headers={"origin": ORIGIN, **asking})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "x-response-time" in allowed.headers
        refused = gateway.client.options("/generate/video", headers={"origin": "https://evil.example", **asking})
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers

    def test_an_upload_that_is_too_long_is_an_error_that_a_browser_may_read(self, start: Start) -> None:
        gateway = start(cors_origins=ORIGIN, max_upload_bytes=1)
        response = gateway.client.post("/generate/video", content=bytes(100_000), headers={"origin": ORIGIN})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (413, ORIGIN)


class TestCrowd:
    NUM_CALLERS = 50

    def test_fifty_at_once_end_well_and_leave_nothing_open(self, gateway: Gateway, workers: Workers) -> None:
        """They all wait for each other in the worker, so that they are there at once."""
        all_there = asyncio.Event()

        async def answer(request: httpx.Request) -> httpx.Response:
            if len(workers.requests) == self.NUM_CALLERS:
                all_there.set()
            await all_there.wait()
            return workers.stream(request.headers["x-request-id"].encode(), b" ", b"x" * 100_000)

        workers.answer = answer

        def call(number: int) -> bytes:
            name = f"caller-{number:03d}"
            if number % 2:
                options: dict[str, Any] = {"method": "POST", "url": "/generate/video", "files": {"image": PNG}}
            else:
                options = {"method": "GET", "url": SPEECH}
            return gateway.client.request(**options, headers={"x-request-id": name}).content

        with ThreadPoolExecutor(self.NUM_CALLERS) as pool:
            answers = list(pool.map(call, range(self.NUM_CALLERS), timeout=LONG))

        assert answers == [b"caller-%03d " % number + b"x" * 100_000 for number in range(self.NUM_CALLERS)]
        rows = gateway.rows()
        assert len({row["request_id"] for row in rows}) == len(rows) == self.NUM_CALLERS
        assert {row["ending"] for row in rows} == {"complete"}
        assert (len(workers.streams), workers.num_open) == (self.NUM_CALLERS, 0)

    def test_a_crowd_of_all_endings_leaves_nothing_open(self, start: Start, workers: Workers) -> None:
        gateway = start(idle_timeout=0.05)
        endings = {
            "whole": lambda: workers.stream(b"a", b"b"),
            "broken": lambda: workers.stream(b"a", httpx.ReadError("killed")),
            "silent": lambda: workers.stream(b"a", asyncio.Event().wait()),
            "refused": lambda: httpx.Response(503, stream=workers.stream(b"{}").stream),
        }

        async def answer(request: httpx.Request) -> httpx.Response:
            return endings[request.headers["x-request-id"].rpartition("-")[2]]()

        workers.answer = answer

        def call(number: int) -> None:
            ending = list(endings)[number % len(endings)]
            try:
                gateway.client.get(SPEECH, headers={"x-request-id": f"caller-{ending}"})
            except httpx.RemoteProtocolError:
                assert ending in ("broken", "silent")

        with ThreadPoolExecutor(self.NUM_CALLERS) as pool:
            list(pool.map(call, range(self.NUM_CALLERS), timeout=LONG))

        rows = gateway.rows()
        assert len(rows) == self.NUM_CALLERS
        for row in rows:
            expected = "failed" if row["request_id"].endswith(("broken", "silent")) else "complete"
            assert row["ending"] == expected
        assert (len(workers.streams), workers.num_open) == (self.NUM_CALLERS, 0)


def test_a_gateway_can_be_stopped_and_started_again(start: Start, workers: Workers) -> None:
    for _ in range(2):
        gateway = start()
        assert gateway.client.get(SPEECH).status_code == 200
        gateway.close()
    assert len(gateway.rows()) == 2


def test_nothing_is_said_about_the_inside(start: Start, workers: Workers) -> None:
    """All that can go wrong, and no word of it about paths, libraries or addresses."""
    gateway = start(deadline=0.3, probe_interval=0.02)
    inside = ("/srv/site-packages/httpx", "Errno 111", "worker.test", "Traceback")

    def failing(error: Exception) -> Callable[[httpx.Request], Any]:
        async def answer(request: httpx.Request) -> httpx.Response:
            raise error

        return answer

    said = " ".join(inside)
    for error in (httpx.ConnectError(said), httpx.ReadError(said), httpx.PoolTimeout(said), ValueError(said)):
        workers.answer = failing(error)
        response = gateway.client.get(SPEECH)
        assert error_of(response)["type"] == "server_error"
        assert not [word for word in inside if word in response.text]
