"""A worker's stream: how it passes, how it breaks, and who closes it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from gateway.metrics import Metrics
from gateway.middleware import Accounting, UnderWay
from gateway.relay import RelayResponse
from gateway.usage.schema import Record
from gateway.waiting import departure
from tests.gateway.conftest import LONG, Gateway, Workers, opened

SPEECH = "/generate/audio?prompt=hello"


class TestStream:
    def test_bytes_pass_untouched_and_the_body_is_closed(self, gateway: Gateway, workers: Workers) -> None:
        sound = bytes(range(256)) * 1000
        workers.streams_once(sound[:1], sound[1:70_000], b"", sound[70_000:], x_seed="42", x_model="bark")

        response = gateway.client.get(SPEECH)

        assert response.content == sound
        assert response.headers["content-type"] == "audio/wav"
        assert (response.headers["x-seed"], response.headers["x-model"]) == ("42", "bark")
        assert workers.num_open == 0
        [row] = gateway.rows()
        assert (row["bytes_out"], row["ending"], row["successful"]) == (len(sound), "complete", 1)

    def test_the_first_chunk_does_not_wait_for_the_second(self, gateway: Gateway, workers: Workers) -> None:
        gate: Future[None] = Future()
        workers.streams_once(b"first", opened(gate), b"second")

        with gateway.client.stream("GET", SPEECH) as response:
            chunks = response.iter_raw()
            assert next(chunks) == b"first"
            gate.set_result(None)
            assert b"".join(chunks) == b"second"

    def test_only_headers_about_the_media_pass(self, gateway: Gateway, workers: Workers) -> None:
        theirs = {"set_cookie": "a=b", "server": "uvicorn", "x_secret": "1", "x_request_id": "theirs-12345"}
        workers.streams_once(b"x", content_length="1", **theirs)

        response = gateway.client.get(SPEECH)

        assert set(response.headers) == {
            *("date", "content-type", "content-length"),
            *("x-request-id", "x-api-request-id", "x-response-time"),
        }
        assert response.headers["x-request-id"] != "theirs-12345"

    def test_a_name_that_is_not_latin_passes_as_the_bytes_it_came(self, gateway: Gateway, workers: Workers) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            response = workers.stream(b"x")
            response.headers = httpx.Headers([(b"X-Model", "猫".encode())])
            return response

        workers.answer = answer
        response = gateway.client.get(SPEECH)
        assert (b"x-model", "猫".encode()) in response.headers.raw
        assert workers.num_open == 0

    def test_a_header_cannot_smuggle_another_in(self, gateway: Gateway, workers: Workers) -> None:
        workers.streams_once(b"x", x_seed="1\r\nset-cookie: admin=1")
        with pytest.raises(httpx.RemoteProtocolError):
            gateway.client.get(SPEECH)
        assert workers.num_open == 0


class TestOwnership:
    """Whoever ends a stream, and however: the worker's body is closed, and the books say how it was."""

    @pytest.mark.parametrize(
        "spec", ["2.3", "2.4"]
    )  # a caller's leaving is a message in the one, an OSError in the other
    @pytest.mark.parametrize(
        ("end", "ending"),
        [("well", "complete"), ("left before", "left"), ("left midway", "left"), ("worker broke", "failed")],
    )
    def test_the_upstream_is_closed(self, workers: Workers, end: str, ending: str, spec: str) -> None:
        records: list[Record] = []

        async def run() -> None:
            is_gone = asyncio.Event()
            num_sent = 0

            async def receive() -> Message:
                if end == "left before" and spec == "2.3":
                    return {"type": "http.disconnect"}
                await is_gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                nonlocal num_sent
                num_sent += 1
                if (end, num_sent) in (("left before", 1), ("left midway", 3)):
                    if spec == "2.4":
                        raise OSError
                    is_gone.set()
                    await asyncio.Event().wait()  # nobody reads any more

            last = httpx.ReadError("killed") if end == "worker broke" else b"end"
            upstream = workers.stream(b"a", b"b", last)

            async def relay(scope: Scope, receive: Receive, send: Send) -> None:
                left = departure(Request(scope, receive))
                await RelayResponse(upstream, left, LONG, {})(scope, receive, send)

            app = Accounting(relay, Metrics(()), records.append, UnderWay())
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": spec}}
            with suppress(OSError):
                await app(scope, receive, send)

        asyncio.run(run())

        assert workers.num_open == 0
        assert [record.ending for record in records] == [ending]
        assert records[0].successful == (ending == "complete")

    @pytest.mark.parametrize(
        ("media_type", "ending"), [("text/event-stream; charset=utf-8", "complete"), ("text/plain", "left")]
    )
    def test_who_leaves_behind_the_last_event_has_had_it_all(
        self, gateway: Gateway, workers: Workers, media_type: str, ending: str
    ) -> None:
        """As the official SDK does: it waits for `[DONE]`, and not for the end of the body."""
        never: Future[None] = Future()
        workers.streams_once(b"data: {}\n\ndata: [DO", b"NE]\n\n", opened(never), content_type=media_type)

        with gateway.client.stream("GET", SPEECH) as response:
            heard = b""
            pieces = response.iter_raw()
            while not heard.endswith(b"[DONE]\n\n"):
                heard += next(pieces)

        [row] = gateway.rows()
        assert (row["ending"], row["successful"]) == (ending, ending == "complete")
        assert workers.num_open == 0


class TestHalf:
    @pytest.mark.parametrize("length", [None, "12"])
    def test_half_a_file_does_not_look_whole(
        self, gateway: Gateway, workers: Workers, caplog: pytest.LogCaptureFixture, length: str | None
    ) -> None:
        declared = {} if length is None else {"content_length": length}
        workers.streams_once(b"half", httpx.ReadError("the worker was killed"), **declared)

        with gateway.client.stream("GET", SPEECH) as response:
            assert response.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()

        [row] = gateway.rows()
        assert (row["status"], row["ending"], row["successful"], row["bytes_out"]) == (200, "failed", 0, 4)
        assert workers.num_open == 0
        [line] = [record for record in caplog.records if record.name.startswith("atelier")]
        assert (line.levelno, line.exc_info) == (logging.WARNING, None)
        assert not [record for record in caplog.records if record.exc_info]

    def test_a_worker_that_falls_silent_midway_is_cut_off(
        self, start: Callable[..., Gateway], workers: Workers, caplog: pytest.LogCaptureFixture
    ) -> None:
        gateway = start(idle_timeout=0.05)
        workers.streams_once(b"half", opened(Future()))

        with pytest.raises(httpx.RemoteProtocolError):
            gateway.client.get(SPEECH)

        assert gateway.rows()[0]["ending"] == "failed"
        assert workers.num_open == 0
        assert not [record for record in caplog.records if record.exc_info]

    def test_what_fails_in_the_gateway_itself_does_not_look_whole_either(
        self, gateway: Gateway, workers: Workers, caplog: pytest.LogCaptureFixture
    ) -> None:
        workers.streams_once(b"half", ZeroDivisionError("nobody expected this"))

        with pytest.raises(httpx.RemoteProtocolError):
            gateway.client.get(SPEECH)

        assert gateway.rows()[0]["ending"] == "failed"
        assert workers.num_open == 0
        assert [record for record in caplog.records if record.exc_info]
