"""A worker without BentoML around it: from a multipart form to a film, and every refusal on the way."""

import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.engine.generation import Run, Tally
from services.engine.metrics import Ending
from services.engine.stepper import Result, WholeCall
from services.errors import ModelLoading, ModelUnavailable
from services.registry import Model, Template
from services.responses import rendered
from services.schema import DEADLINE_HEADER
from services.settings import Settings
from services.video.schema import TextVideoJob, VideoJob
from services.video.service import make_film
from services.worker import Worker
from tests.services.conftest import LONG, Gate, served, undisturbed_logging

MODEL = "moves"
TEXT_MODEL = "films"


class Projector:
    """Shows the picture it is given, or red, as often as it is told; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[VideoJob | TextVideoJob, Image.Image, int]] = []
        self.is_stopped = threading.Event()

    def generate(self, request: tuple[VideoJob, Image.Image] | TextVideoJob, seed: int, run: Run) -> Result:
        job, picture = request if isinstance(request, tuple) else (request, Image.new("RGB", (64, 64), "red"))
        self.asked.append((job, picture, seed))
        try:
            while job.fps == 30:  # a film that never begins
                run.advance(1, job.num_frames)
        finally:
            self.is_stopped.set()
        for number in range(1, job.num_frames + 1):
            run.emit(np.asarray(picture.resize((64, 64))))
            run.advance(number, job.num_frames)
        return Result()


class FilmWorker(Worker):
    longest = LONG


class Cinema:
    def __init__(self) -> None:
        self.projector = Projector()
        self.loading = Gate()
        self.worker = FilmWorker("video", self._make)

    def _make(self, model: Model, settings: Settings) -> WholeCall:
        self.loading()
        return WholeCall(self.projector)

    async def __call__(self, request: Request) -> Response:
        return await rendered(make_film(request, self.worker))  # type: ignore[arg-type] # the service is this with a route


@pytest.fixture(scope="module")
def cinema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Cinema]]:
    left_behind = tmp_path_factory.mktemp("worker") / "draining"  # by a stop before this start
    left_behind.touch()
    with undisturbed_logging(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATELIER_DRAIN_FILE", str(left_behind))
        cinema = Cinema()
    cinema.worker.start()
    with served(Starlette(routes=[Route("/v1/videos", cinema.__call__, methods=["POST"])])) as url:
        assert cinema.loading.reached.wait(LONG)
        refusal = post(url)
        assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "5")
        assert error_of(refusal)["code"] == "model_loading"
        cinema.loading.opened.set()
        while post(url).status_code == 503:
            pass  # what a client does that is told to come back
        yield url, cinema
    cinema.worker.stop()
    with pytest.raises(ModelLoading):
        cinema.worker.engine.check_is_ready()


def png(size: tuple[int, int] = (64, 64), colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def post(url: str, picture: bytes | None = None, *, deadline: str = "20", **fields: Any) -> httpx.Response:
    files = {"input_reference": png() if picture is None else picture}
    headers = {DEADLINE_HEADER: deadline}
    return httpx.post(f"{url}/v1/videos", files=files, data=fields, headers=headers, timeout=LONG)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_a_form_becomes_a_film(cinema: tuple[str, Cinema]) -> None:
    url, booth = cinema
    answer = post(url, num_frames="3", seed="123", fps="9")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    assert (answer.headers["x-seed"], answer.headers["x-model"]) == ("123", MODEL)
    with av.open(io.BytesIO(answer.content), "r") as container:
        assert container.streams.video[0].average_rate == 9
        colours = [frame.to_ndarray(format="rgb24").mean(axis=(0, 1)) for frame in container.decode(video=0)]
    assert len(colours) == 3
    assert np.allclose(colours, [255, 0, 0], atol=6)

    job, picture, seed = booth.projector.asked[-1]
    assert isinstance(job, VideoJob)
    assert (job.num_frames, job.fps, job.model, seed) == (3, 9, MODEL, 123)
    assert (job.size, job.num_inference_steps, job.decode_chunk_size) == ("64x64", 10, 8)  # the tiny model's defaults
    assert picture.mode == "RGB"


def test_the_operators_words_are_around_every_prompt(cinema: tuple[str, Cinema]) -> None:
    url, booth = cinema
    template = Template(prefix="A calm ", suffix=", in oil", negative="text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(booth.worker.templates, TEXT_MODEL, template)
        patch.setitem(booth.worker.templates, MODEL, template)
        said = []
        for fields in ({"prompt": "sea"}, {"prompt": "sea", "negative_prompt": "ships"}):
            assert post_text(url, num_frames="5", **fields).status_code == 200
            job = booth.projector.asked[-1][0]
            said.append((job.prompt, job.negative_prompt))
        post(url)  # a picture, and no prompt

    assert said == [("A calm sea, in oil", "text"), ("A calm sea, in oil", "ships, text")]
    assert booth.projector.asked[-1][0].prompt is None


def test_a_large_picture_is_cut_to_the_films_size_before_it_waits(cinema: tuple[str, Cinema]) -> None:
    url, booth = cinema
    left_half = Image.new("RGB", (800, 400), "blue")
    left_half.paste("red", (0, 0, 400, 400))
    file = io.BytesIO()
    left_half.save(file, "PNG")
    assert post(url, file.getvalue()).status_code == 200

    picture = booth.projector.asked[-1][1]
    assert picture.size == (64, 64)
    assert (picture.getpixel((20, 30)), picture.getpixel((50, 30))) == ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_frames": "1"}, "num_frames"),
        ({"num_frames": "1e6"}, "num_frames"),
        ({"seed": "-1"}, "seed"),
        ({"size": "65x64"}, "size"),
        ({"prompt": "a cat"}, "prompt"),
        ({"prompt": "a cat", "model": MODEL}, "prompt"),
        ({"negative_prompt": "a cat"}, "negative_prompt"),
        ({"guidance_scale": "3"}, "guidance_scale"),
        ({"num_frames": "65"}, "num_frames"),
        ({"prompt": "a cat", "model": TEXT_MODEL}, "input_reference"),
        ({"model": TEXT_MODEL}, "prompt"),
    ],
)
def test_a_field_that_does_not_fit_is_named(cinema: tuple[str, Cinema], fields: dict[str, Any], param: str) -> None:
    url, booth = cinema
    num_asked = len(booth.projector.asked)
    answer = post(url, **fields)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert len(booth.projector.asked) == num_asked


def test_a_field_without_a_default_has_to_be_said(cinema: tuple[str, Cinema]) -> None:
    """As of an operator's own entry that names few."""
    url, booth = cinema
    defaults = dict(booth.worker.engine.defaults(MODEL))
    del defaults["num_inference_steps"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(booth.worker.engine, "defaults", lambda model: defaults)
        answer = post(url)
        assert post(url, num_inference_steps="4").status_code == 200

    assert (answer.status_code, error_of(answer)["param"]) == (400, "num_inference_steps")
    assert error_of(answer)["message"] == "num_inference_steps: is required"


def post_text(url: str, **fields: Any) -> httpx.Response:
    parts = {name: (None, value) for name, value in fields.items()}  # multipart without a file
    return httpx.post(f"{url}/v1/videos", files=parts, timeout=LONG)


def test_a_prompt_and_no_picture_go_to_the_model_for_texts(cinema: tuple[str, Cinema]) -> None:
    url, booth = cinema
    answer = post_text(url, prompt="a cat", negative_prompt="a dog", guidance_scale="3.5", num_frames="5", seed="123")

    assert answer.status_code == 200
    assert (answer.headers["x-seed"], answer.headers["x-model"]) == ("123", TEXT_MODEL)
    with av.open(io.BytesIO(answer.content), "r") as container:
        assert container.streams.video[0].average_rate == 7
        assert sum(1 for _ in container.decode(video=0)) == 5

    job, _, seed = booth.projector.asked[-1]
    assert isinstance(job, TextVideoJob)
    assert (job.prompt, job.negative_prompt, job.guidance_scale, seed) == ("a cat", "a dog", 3.5, 123)
    assert (job.size, job.num_inference_steps, job.fps) == ("64x64", 6, 7)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input_reference"),
        ({"model": MODEL}, "input_reference"),
        ({"prompt": "a cat", "model": MODEL}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a cat", "num_frames": "8"}, "num_frames"),
        ({"prompt": "a cat", "num_frames": "165"}, "num_frames"),
        ({"prompt": "a cat", "size": "72x64"}, "size"),
        ({"prompt": "a cat", "motion_bucket_id": "3"}, "motion_bucket_id"),
        ({"prompt": "a cat", "input_reference": "not a file"}, "input_reference"),
        ({"prompt": "a cat", "colour": "red"}, "colour"),
    ],
)
def test_a_field_that_does_not_fit_a_text_is_named(
    cinema: tuple[str, Cinema], fields: dict[str, Any], param: str
) -> None:
    url, booth = cinema
    num_asked = len(booth.projector.asked)
    answer = post_text(url, **fields)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert len(booth.projector.asked) == num_asked


def test_a_file_in_another_field_is_named(cinema: tuple[str, Cinema]) -> None:
    answer = httpx.post(f"{cinema[0]}/v1/videos", files={"picture": png()}, data={"prompt": "a cat"}, timeout=LONG)

    assert (answer.status_code, error_of(answer)["param"]) == (400, "picture")


def test_a_body_that_is_no_form_is_refused(cinema: tuple[str, Cinema]) -> None:
    answer = httpx.post(f"{cinema[0]}/v1/videos", json={"prompt": "a cat"}, timeout=LONG)

    assert (answer.status_code, error_of(answer)["param"]) == (400, "input_reference")


@pytest.mark.parametrize("picture", [b"", b"no picture", png()[:60], png((200, 1))], ids=len)
def test_a_file_that_is_no_picture_is_named(cinema: tuple[str, Cinema], picture: bytes) -> None:
    answer = post(cinema[0], picture)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "input_reference"


def test_a_model_that_is_not_served_is_refused_before_its_picture_is_read(cinema: tuple[str, Cinema]) -> None:
    answer = post(cinema[0], b"no picture", model="another")

    assert answer.status_code == 404
    assert (error_of(answer)["param"], error_of(answer)["code"]) == ("model", "model_not_found")


def test_a_request_that_is_refused_has_a_receipt_with_nothing_on_it(
    cinema: tuple[str, Cinema], monkeypatch: pytest.MonkeyPatch
) -> None:
    tallies: list[Tally] = []
    monkeypatch.setattr(cinema[1].worker.receipts, "teller", lambda request: tallies.append)
    assert post(cinema[0], model="another").status_code == 404
    assert tallies == [Tally("", Ending.FAILED)]

    assert post(cinema[0]).status_code == 200
    assert [(tally.model, tally.ending) for tally in tallies[1:]] == [(MODEL, Ending.COMPLETE)]


def test_a_deadline_that_is_no_time_is_refused_first(cinema: tuple[str, Cinema]) -> None:
    answer = post(cinema[0], b"no picture", deadline="soon", model="another")

    assert error_of(answer)["param"] == DEADLINE_HEADER


def test_a_callers_deadline_stops_the_model(cinema: tuple[str, Cinema]) -> None:
    url, booth = cinema
    booth.projector.is_stopped.clear()
    answer = post(url, deadline="0.5", fps="30")

    assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
    assert booth.projector.is_stopped.wait(LONG)


def test_a_file_that_is_too_large_is_refused(cinema: tuple[str, Cinema]) -> None:
    url, booth = cinema
    answer = post(url, bytes(booth.worker.settings.max_upload_bytes + 100_000))

    assert answer.status_code == 413
    assert error_of(answer)["code"] == "payload_too_large"


@pytest.mark.anyio
async def test_a_worker_is_ready_when_its_engine_is(cinema: tuple[str, Cinema]) -> None:
    assert await cinema[1].worker.__is_ready__()


@pytest.mark.anyio
async def test_a_worker_that_is_about_to_be_stopped_says_so_and_serves_on(cinema: tuple[str, Cinema]) -> None:
    url, booth = cinema
    file = booth.worker.settings.drain_file
    assert file is not None
    file.touch()
    try:
        with pytest.raises(HTTPException) as refusal:
            await booth.worker.__is_ready__()
        assert refusal.value.status_code == 503
        assert json.loads(refusal.value.detail)["error"]["code"] == "model_loading"
        assert post(url).status_code == 200
    finally:
        file.unlink()


@pytest.mark.anyio
async def test_a_worker_that_cannot_load_its_model_says_why(
    cinema: tuple[str, Cinema], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ModelUnavailable("the disk is full")

    monkeypatch.setattr(cinema[1].worker.engine, "check_is_ready", refuse)
    with pytest.raises(HTTPException) as refusal:
        await cinema[1].worker.__is_ready__()

    assert refusal.value.status_code == 503
    assert json.loads(refusal.value.detail)["error"]["message"] == "the disk is full"
