"""Answers over a real socket: what fails has a status, what breaks off looks broken, who leaves stops the model."""

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message

from services.audio.answers import SpeechEncoder
from services.encoders import (
    Base64Encoder,
    Encoder,
    EventEncoder,
    Mp4Encoder,
    ObjEncoder,
)
from services.engine.events import Done, Preview
from services.engine.generation import Generation, Run
from services.engine.outputs import Mesh, Sound
from services.engine.stepper import Result
from services.errors import Cancelled, DeadlineExceeded, InvalidRequest, PayloadTooLarge, QueueFull
from services.image.answers import PictureEncoder
from services.responses import Delivery, deadline_of, negotiated, rendered, respond, terms_of, wants
from services.schema import CALLER_HEADER, DEADLINE_HEADER, PRIORITY_HEADER, RUN_HEADERS
from tests.services.conftest import LONG, Bench, Gate, Script, connect, nothing, served, steps, until_stopped
from tests.services.encoding import png_encoder, wav_encoder

Answer = Callable[[Request], Awaitable[Response]]

PICTURE = np.zeros((8, 8, 3), np.uint8)
TRIANGLE = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), np.eye(3, dtype=np.float32))


class Plain:
    """Strings as they come."""

    media_type, streams = "text/plain", True

    def add(self, data: str) -> bytes:
        return data.encode()

    def close(self, done: Done) -> bytes:
        return b""

    def abort(self) -> None:
        pass


class Whole(Plain):
    """Strings in one piece."""

    media_type, streams = "application/json", False

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def add(self, data: str) -> bytes:
        self._pieces.append(data)
        return b""

    def close(self, done: Done) -> bytes:
        return json.dumps("".join(self._pieces)).encode()


class Watched(Plain):
    """Tells when it is freed."""

    def __init__(self) -> None:
        self.streams = True
        self.freed = threading.Event()

    def abort(self) -> None:
        self.freed.set()


class Stuck(Watched):
    """Holds the thread that adds to it, as a slow codec does; nothing may free it meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self._lock = threading.Lock()

    def add(self, data: Any) -> bytes:
        with self._lock:
            self.gate()
            return super().add(data)

    def abort(self) -> None:
        with self._lock:
            super().abort()


class Broken(Watched):
    """Fails at the second output."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def add(self, data: Any) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("a frame has the shape /secret")
        return super().add(data)


class App:
    """Serves one script with one encoder."""

    def __init__(self, bench: Bench, url: str, answers: dict[str, Answer]) -> None:
        self.bench = bench
        self.ping = url + "/ping"
        self._url = url
        self._answers = answers
        self.generations: list[Generation] = []
        self.arrivals = threading.Semaphore(0)

    def serve(self, script: Script, encoder: Encoder, deadline: float = LONG) -> str:
        async def start() -> tuple[Generation, Encoder]:
            generation = self.bench.submit(script, deadline=deadline)
            self.generations.append(generation)
            self.arrivals.release()
            return generation, encoder

        async def answer(request: Request) -> Response:
            return await rendered(respond(request, start))

        path = f"/{len(self._answers)}"
        self._answers[path] = answer
        return self._url + path

    def left(self) -> dict[str, float | None]:
        """Wait until the engine is through with everything; say how it ended."""
        asyncio.run(self.bench.serve())
        return self.bench.endings()


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[str, dict[str, Answer]]]:
    """One server for all; each test adds its own answers."""
    answers: dict[str, Answer] = {}

    async def dispatch(request: Request) -> Response:
        return await answers[request.url.path](request)

    async def ping(request: Request) -> Response:
        return PlainTextResponse("pong")

    with served(Starlette(routes=[Route("/ping", ping), Route("/{answer}", dispatch)])) as url:
        yield url, answers


@pytest.fixture
def app(bench: Bench, site: tuple[str, dict[str, Answer]]) -> App:
    return App(bench, *site)


def emitting(*outputs: Any) -> Script:
    def script(run: Run) -> Result:
        for number, output in enumerate(outputs, start=1):
            run.emit(output)
            run.advance(number, len(outputs))
        run.count(pieces=len(outputs))
        return Result()

    return script


def after(gate: Gate, then: Script, first: str | None = None) -> Script:
    def script(run: Run) -> Result:
        if first is not None:
            run.emit(first)
        gate()
        return then(run)

    return script


def failing(error: Exception) -> Script:
    def script(run: Run) -> Result:
        raise error

    return script


# --- whole and streamed ---


@pytest.mark.parametrize(
    ("encoder", "output"),
    [
        (png_encoder(), PICTURE),
        (ObjEncoder(), TRIANGLE),
        (Base64Encoder(png_encoder(), "png"), PICTURE),
        (Whole(), "Hi"),
    ],
    ids=["png", "obj", "base64", "whole"],
)
def test_what_is_not_streamed_has_a_length(app: App, encoder: Encoder, output: Any) -> None:
    answer = httpx.get(app.serve(emitting(output), encoder))

    assert answer.status_code == 200
    assert answer.headers["content-type"] == encoder.media_type
    assert int(answer.headers["content-length"]) == len(answer.content) > 0
    assert "transfer-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("encoder", "output"),
    [(Plain(), "Hi"), (wav_encoder(), Sound(np.zeros(9, np.float32), 24_000)), (Mp4Encoder(7), PICTURE)],
    ids=["text", "wav", "mp4"],
)
def test_what_is_streamed_has_none(app: App, encoder: Encoder, output: Any) -> None:
    answer = httpx.get(app.serve(emitting(output), encoder))

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(encoder.media_type)
    assert "content-length" not in answer.headers
    assert len(answer.content) > 0


@pytest.mark.parametrize("encoder", [Plain(), Whole()], ids=["streamed", "whole"])
def test_an_answer_says_which_model_and_which_seed(app: App, encoder: Encoder) -> None:
    answer = httpx.get(app.serve(emitting("Hi"), encoder))

    assert answer.headers["x-model"] == "model"
    assert answer.headers["x-seed"] == str(app.generations[0].seed)


def test_pieces_leave_as_they_are_made(app: App) -> None:
    gate = Gate()
    url = app.serve(after(gate, emitting("second ", "third"), first="first "), Plain())

    with httpx.stream("GET", url, timeout=LONG) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"first "  # while the model is held
        gate.opened.set()
        assert b"".join(pieces) == b"second third"


def test_what_is_not_streamed_waits_for_the_end(app: App) -> None:
    url = app.serve(emitting("one ", "two ", "three"), Whole())

    assert httpx.get(url).json() == "one two three"


def test_an_answer_without_any_output_is_whole(app: App) -> None:
    answer = httpx.get(app.serve(nothing, Plain()))

    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("streams", [True, False])
def test_an_answer_that_is_whole_has_freed_its_encoder(app: App, streams: bool) -> None:
    encoder = Watched()
    encoder.streams = streams
    assert httpx.get(app.serve(emitting("Hi"), encoder)).text == "Hi"

    assert encoder.freed.wait(LONG)
    assert app.left() == {"complete": 2, "left": 0, "failed": 0, "late": 0}


# --- failures ---


def test_what_fails_before_the_first_byte_answers_with_a_status(app: App) -> None:
    encoder = Watched()
    error = InvalidRequest("there is no voice 'x'", param="voice")
    answer = httpx.get(app.serve(failing(error), encoder))

    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "message": "there is no voice 'x'",
            "type": "invalid_request_error",
            "param": "voice",
            "code": "invalid_value",
        }
    }
    assert answer.headers["x-should-retry"] == "false"
    assert "x-model" not in answer.headers
    assert encoder.freed.is_set()


def test_who_may_come_back_is_told_when(app: App) -> None:
    answer = httpx.get(app.serve(failing(QueueFull("later", retry_after=4.6)), Plain()))

    assert answer.status_code == 429
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("5", "true")


def test_a_deadline_before_the_first_byte_answers_with_a_status(app: App) -> None:
    encoder = Watched()
    answer = httpx.get(app.serve(until_stopped, encoder, deadline=0.05))

    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert encoder.freed.is_set()
    assert app.left() == {"complete": 1, "left": 0, "failed": 0, "late": 1}


@pytest.mark.parametrize("script", [failing(RuntimeError("/secret")), emitting("Hi")], ids=["model", "encoder"])
def test_a_bug_before_the_first_byte_is_a_500_without_its_words(app: App, script: Script) -> None:
    encoder = Broken(after=0)
    answer = httpx.get(app.serve(script, encoder))

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    assert "secret" not in answer.text
    assert encoder.freed.is_set()


def test_an_encoder_that_fails_stops_the_model(app: App) -> None:
    def script(run: Run) -> Result:
        run.emit("Hi")
        return until_stopped(run)

    assert httpx.get(app.serve(script, Broken(after=0))).status_code == 500
    assert app.left() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


@pytest.mark.parametrize("error", [RuntimeError("/secret"), InvalidRequest("no"), DeadlineExceeded()], ids=type)
def test_what_fails_after_the_first_byte_breaks_off(app: App, error: Exception) -> None:
    gate, encoder = Gate(), Watched()
    url = app.serve(after(gate, failing(error), first="half "), encoder)

    with httpx.stream("GET", url, timeout=LONG) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_raw()
        assert next(pieces) == b"half "
        gate.opened.set()
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            next(pieces)
    assert encoder.freed.wait(LONG)


def test_an_encoder_that_fails_after_the_first_byte_breaks_off(app: App) -> None:
    gate, encoder = Gate(), Broken(after=1)
    url = app.serve(after(gate, emitting("second"), first="half "), encoder)

    with httpx.stream("GET", url, timeout=LONG) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"half "
        gate.opened.set()
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            next(pieces)
    assert encoder.freed.wait(LONG)


def test_the_server_goes_on_after_a_body_that_broke_off(app: App) -> None:
    gate = Gate()
    url = app.serve(after(gate, failing(RuntimeError()), first="half "), Plain())

    with httpx.Client(timeout=LONG) as client:
        with client.stream("GET", url) as answer:
            next(answer.iter_raw())
            gate.opened.set()
        assert client.get(app.ping).text == "pong"


# --- leaving ---


def ask(connection: socket.socket, url: str) -> None:
    connection.sendall(f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())


def test_who_leaves_before_the_first_byte_stops_the_model(app: App) -> None:
    gate, encoder = Gate(), Watched()
    url = app.serve(after(gate, until_stopped), encoder)

    with connect(url) as connection:
        ask(connection, url)
        assert gate.reached.wait(LONG)
    assert encoder.freed.wait(LONG)
    gate.opened.set()

    assert app.left() == {"complete": 1, "left": 1, "failed": 0, "late": 0}
    assert app.bench.count("iterations_after_leave_total") == 1


def test_who_leaves_the_queue_makes_room_at_once(app: App) -> None:
    gate, encoder = Gate(), Watched()
    url = app.serve(after(gate, nothing), encoder)

    with connect(url) as running:
        ask(running, url)
        assert gate.reached.wait(LONG)
        assert app.arrivals.acquire(timeout=LONG)
        with connect(url) as waiting:
            ask(waiting, url)
            assert app.arrivals.acquire(timeout=LONG)
        assert encoder.freed.wait(LONG)
        assert app.bench.queue_length == 0
        gate.opened.set()
        assert running.recv(15) == b"HTTP/1.1 200 OK"

    assert app.left() == {"complete": 2, "left": 1, "failed": 0, "late": 0}


def test_who_leaves_midway_stops_the_model(app: App) -> None:
    gate, encoder = Gate(), Watched()
    url = app.serve(after(gate, until_stopped, first="half "), encoder)

    with httpx.stream("GET", url, timeout=LONG) as answer:
        assert next(answer.iter_raw()) == b"half "
    assert encoder.freed.wait(LONG)
    gate.opened.set()

    assert app.left() == {"complete": 1, "left": 1, "failed": 0, "late": 0}
    assert app.bench.count("iterations_after_leave_total") == 1


@pytest.mark.parametrize("first", [None, "half "], ids=["before the first byte", "midway"])
def test_an_encoder_is_not_freed_while_a_thread_is_in_it_and_nobody_else_waits(app: App, first: str | None) -> None:
    encoder = Stuck()
    if first is not None:
        encoder.gate.opened.set()
    script_gate = Gate()
    url = app.serve(after(script_gate, emitting("second"), first=first), encoder)

    with connect(url) as connection:
        ask(connection, url)
        if first is not None:
            assert connection.recv(1) == b"H"
            encoder.gate = Gate()
        script_gate.opened.set()
        assert encoder.gate.reached.wait(LONG)
    for _ in range(3):  # the caller has left, a thread is in the encoder, and the event loop goes on answering
        assert httpx.get(app.ping, timeout=LONG).text == "pong"
    assert not encoder.freed.is_set()
    encoder.gate.opened.set()
    assert encoder.freed.wait(LONG)


# --- the ends that no socket brings about in time ---

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.3"}}


async def connected() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def accept(message: Message) -> None:
    await asyncio.sleep(0)


async def refuse(message: Message) -> None:
    raise OSError("connection lost")


def starting(bench: Bench, encoder: Encoder, script: Script) -> Callable[[], Awaitable[tuple[Generation, Encoder]]]:
    async def start() -> tuple[Generation, Encoder]:
        return bench.submit(script), encoder

    return start


async def streaming(bench: Bench, encoder: Encoder, gate: Gate) -> Response:
    script = after(gate, until_stopped, first="half ")
    return await respond(Request(SCOPE, connected), starting(bench, encoder, script))


@pytest.mark.anyio
async def test_a_stream_that_never_begins_stops_the_model(bench: Bench) -> None:
    gate, encoder = Gate(), Watched()
    response = await streaming(bench, encoder, gate)
    await response(SCOPE, gone, accept)  # gone between the first piece and the response

    assert encoder.freed.is_set()
    gate.opened.set()
    await bench.serve()
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_socket_that_breaks_stops_the_model(bench: Bench, spec_version: str) -> None:
    gate, encoder = Gate(), Watched()
    response = await streaming(bench, encoder, gate)
    with pytest.raises((OSError, ClientDisconnect)):
        await response({**SCOPE, "asgi": {"spec_version": spec_version}}, connected, refuse)

    assert encoder.freed.is_set()
    gate.opened.set()
    await bench.serve()
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


@pytest.mark.anyio
async def test_who_was_gone_from_the_beginning_is_not_served(bench: Bench) -> None:
    gate, encoder = Gate(), Watched()
    with pytest.raises(Cancelled):
        await respond(Request(SCOPE, gone), starting(bench, encoder, after(gate, until_stopped)))

    assert encoder.freed.is_set()
    gate.opened.set()
    await bench.serve()
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_server_that_cancels_at_any_moment_stops_the_model(bench: Bench, turns: int, cancels: int) -> None:
    gate, encoder = Gate(), Watched()
    started = asyncio.Event()

    async def start() -> tuple[Generation, Encoder]:
        started.set()
        return bench.submit(after(gate, until_stopped)), encoder

    answering = asyncio.create_task(respond(Request(SCOPE, connected), start))
    await started.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    for _ in range(cancels):
        answering.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await answering

    assert await asyncio.to_thread(encoder.freed.wait, LONG)
    gate.opened.set()
    await bench.serve()
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


@pytest.mark.anyio
async def test_a_server_that_cancels_inside_the_start_stops_the_model(bench: Bench) -> None:
    gate, encoder = Gate(), Watched()

    async def start() -> tuple[Generation, Encoder]:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()  # arrives at the next await, before a first piece has been asked for
        return bench.submit(after(gate, until_stopped)), encoder

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(respond(Request(SCOPE, connected), start))

    assert encoder.freed.is_set()
    gate.opened.set()
    await bench.serve()
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_server_that_cancels_a_stream_stops_the_model(bench: Bench, turns: int, cancels: int) -> None:
    gate, encoder = Gate(), Watched()
    response = await streaming(bench, encoder, gate)
    answering = asyncio.create_task(response(SCOPE, connected, accept))
    for _ in range(1 + turns):
        await asyncio.sleep(0)
    for _ in range(cancels):
        answering.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await answering

    assert await asyncio.to_thread(encoder.freed.wait, LONG)
    gate.opened.set()
    await bench.serve()
    assert bench.endings() == {"complete": 1, "left": 1, "failed": 0, "late": 0}


@pytest.mark.anyio
async def test_a_delivery_may_be_closed_twice(bench: Bench) -> None:
    encoder = Watched()
    delivery = Delivery(bench.submit(steps(1)), encoder)
    assert [piece async for piece in delivery.pieces()] == [b""]
    await delivery.close()
    await delivery.close()

    await bench.serve()
    assert bench.endings() == {"complete": 2, "left": 0, "failed": 0, "late": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("error", [Cancelled(), ClientDisconnect()], ids=["waiting", "uploading"])
async def test_a_caller_who_left_is_no_error(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def answer() -> Response:
        raise error

    assert (await rendered(answer())).status_code == 499
    assert caplog.records == []


@pytest.mark.anyio
async def test_errors_name_their_status() -> None:
    async def answer() -> Response:
        raise PayloadTooLarge("the upload is larger than 5 bytes")

    response = await rendered(answer())

    assert response.status_code == 413
    assert b'"code":"payload_too_large"' in bytes(response.body)


# --- headers ---


def request_with(**headers: str) -> Request:
    return Request({**SCOPE, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})


@pytest.mark.parametrize(
    ("value", "deadline"), [("5", 5), ("0.5", 0.5), ("60", 60), ("61", 60), ("1e9", 60), ("inf", 60), (None, 60)]
)
def test_a_deadline_is_the_callers_but_never_longer_than_the_workers(value: str | None, deadline: float) -> None:
    headers = {} if value is None else {DEADLINE_HEADER: value}

    assert deadline_of(request_with(**headers), longest=60) == deadline


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "-inf", "0x10"])
def test_a_deadline_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match=DEADLINE_HEADER):
        deadline_of(request_with(**{DEADLINE_HEADER: value}), longest=60)


def test_media_is_asked_for_by_its_type() -> None:
    assert wants(request_with(accept="image/png"), "image/png")
    assert wants(request_with(accept="text/html, image/png;q=0.9"), "image/png")
    assert wants(request_with(accept="Image/PNG, application/json"), "image/png")
    assert not wants(request_with(accept="application/json, text/plain, */*"), "text/plain")  # many a browser library
    assert not wants(request_with(accept="*/*"), "image/png")
    assert not wants(request_with(accept="text/plainer"), "text/plain")
    assert not wants(request_with(), "image/png")


def test_the_terms_are_the_gateways() -> None:
    terms = terms_of(request_with(**{DEADLINE_HEADER: "5", CALLER_HEADER: "ann", PRIORITY_HEADER: "-3"}), longest=60)

    assert (terms.deadline, terms.caller, terms.priority, terms.num_previews) == (5, "ann", -3, 0)
    assert terms_of(request_with(), longest=60).priority == 0
    assert not terms.wants_progress
    followed = terms_of(request_with(accept="text/event-stream"), longest=60)
    assert followed.num_previews > 0
    assert followed.wants_progress


@pytest.mark.parametrize("value", ["", "high", "1.5", "101", "-101", "1 ", "+1"])
def test_a_priority_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match=PRIORITY_HEADER) as refusal:
        terms_of(request_with(**{PRIORITY_HEADER: value}), longest=60)
    assert refusal.value.param == PRIORITY_HEADER


def test_the_form_of_the_answer_is_the_callers_choice() -> None:
    def document(inner: Encoder) -> Encoder:
        return Base64Encoder(inner, "png")

    def chosen(accept: str) -> type:
        return type(negotiated(request_with(accept=accept), png_encoder(), document))

    assert chosen("image/png") is PictureEncoder
    assert chosen("*/*") is chosen("application/json, text/event-stream") is Base64Encoder
    assert chosen("text/event-stream") is EventEncoder
    assert isinstance(negotiated(request_with(), wav_encoder()), SpeechEncoder)


# --- events and numbers ---


def events_of(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Parse server-sent events."""
    parsed = []
    for block in body.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        parsed.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return parsed


def test_events_tell_how_it_goes_and_carry_the_result(app: App) -> None:
    def script(run: Run) -> Result:
        run.advance(1, 2)
        run.emit(PICTURE)
        run.advance(2, 2)
        run.count(images=1)
        return Result()

    answer = httpx.get(app.serve(script, EventEncoder(png_encoder())))
    events = events_of(answer.content)

    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [name for name, _ in events]
    assert [name for name in names if name != "queued"] == ["started", "progress", "output", "progress", "done"]
    by_name = dict(events)
    assert by_name["queued"] == {"position": 0}
    assert by_name["progress"] == {"step": 2, "steps": 2, "eta_seconds": 0}
    assert base64.b64decode(by_name["output"]["b64"]).startswith(b"\x89PNG")
    assert by_name["output"]["media_type"] == "image/png"
    assert by_name["done"] == {"finish_reason": "stop", "usage": {"images": 1}}


def test_what_ends_a_generation_early_is_its_last_event(app: App) -> None:
    def script(run: Run) -> Result:
        run.advance(1, 2)
        raise InvalidRequest("there is no voice 'x'", param="voice")

    answer = httpx.get(app.serve(script, EventEncoder(wav_encoder())))
    name, error = events_of(answer.content)[-1]

    assert answer.status_code == 200  # the events had begun
    assert name == "error"
    assert (error["status"], error["code"], error["param"]) == (400, "invalid_value", "voice")


def test_an_output_that_cannot_be_written_ends_the_events_with_its_error(app: App) -> None:
    class Unable(Plain):
        def add(self, data: Any) -> bytes:
            raise InvalidRequest("with so few faces nothing is left", param="max_faces")

    answer = httpx.get(app.serve(emitting("a"), EventEncoder(Unable())))
    names = [name for name, _ in events_of(answer.content)]

    assert (names[-1], names.count("error"), "done" in names) == ("error", 1, False)
    assert events_of(answer.content)[-1][1]["param"] == "max_faces"


def test_who_leaves_the_events_stops_the_model(app: App) -> None:
    with httpx.stream("GET", app.serve(until_stopped, EventEncoder(Plain()))) as answer:
        assert next(answer.iter_bytes())

    assert app.left()["left"] == 1


def test_a_preview_is_a_jpeg() -> None:
    ((name, data),) = events_of(EventEncoder(png_encoder()).tell(Preview(3, PICTURE)))

    assert (name, data["step"], data["media_type"]) == ("preview", 3, "image/jpeg")
    with Image.open(io.BytesIO(base64.b64decode(data["b64"]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (8, 8))


def test_an_answer_that_is_whole_carries_the_numbers(app: App) -> None:
    headers = httpx.get(app.serve(steps(3), Whole())).headers

    assert headers["x-iterations"] == "3"
    assert headers["x-queue-position"] == "0"
    assert float(headers["x-queue-seconds"]) >= 0
    assert float(headers["x-generation-seconds"]) >= 0
    assert set(RUN_HEADERS) <= set(headers)
