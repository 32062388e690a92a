"""Edits over a real socket: what the model is handed of a caller's files."""

import io
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.engine.assembly import build_engine
from services.engine.generation import Run
from services.engine.stepper import Result, WholeCall
from services.image.edit import Edit
from services.image.service import draw_over
from services.receipts import Receipts
from services.responses import rendered
from services.settings import Settings
from services.worker import Worker
from tests.services.conftest import LONG, Gate, served, undisturbed_logging


class Studio:
    """Remembers what it was asked; waits where it is told to."""

    def __init__(self) -> None:
        self.asked: list[Edit] = []
        self.gate: Gate | None = None
        self.worker = StudioWorker("image", lambda model, settings: WholeCall(self))

    def generate(self, request: Edit, seed: int, run: Run) -> Result:
        self.asked.append(request)
        if self.gate is not None:
            self.gate()
        run.emit(np.zeros((8, 8, 3), np.uint8))
        run.count(images=1)
        return Result()

    async def __call__(self, request: Request) -> Response:
        return await rendered(draw_over(request, self.worker))  # type: ignore[arg-type] # the service is this with a route


class StudioWorker(Worker):
    longest = LONG


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Studio]]:
    monkeypatch.setattr("services.worker.Settings", lambda: Settings(queue_size=1))
    monkeypatch.setattr("services.worker.build_engine", partial(build_engine, registry=CollectorRegistry()))
    monkeypatch.setattr("services.worker.Receipts", partial(Receipts, registry=CollectorRegistry()))
    with undisturbed_logging():
        made = Studio()
    made.worker.start()
    with served(Starlette(routes=[Route("/edits", made.__call__, methods=["POST"])])) as url:
        while post(url).status_code == 503:
            pass  # what a client does that is told to come back
        made.asked.clear()
        yield url, made
    made.worker.stop()


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def post(url: str, mask: bytes | None = None, picture: bytes | None = None, **fields: Any) -> httpx.Response:
    files = {"image": picture or png((640, 320))} | ({"mask": mask} if mask else {})
    return httpx.post(f"{url}/edits", files=files, data={"prompt": "a cat", **fields}, timeout=LONG)


@pytest.mark.parametrize(
    ("mask", "fields", "strength"),
    [
        (None, {}, 0.8),
        (png((10, 10), "L"), {}, 1.0),
        (png((10, 10), "L"), {"strength": "0.5"}, 0.5),
        (None, {"strength": "1"}, 1.0),
    ],
)
def test_the_strength_is_the_librarys_where_none_is_given(
    studio: tuple[str, Studio], mask: bytes | None, fields: dict[str, Any], strength: float
) -> None:
    url, made = studio
    assert post(url, mask, **fields).status_code == 200

    (asked,) = made.asked
    assert asked.strength == strength


def test_picture_and_mask_are_cut_to_the_size_before_they_wait(studio: tuple[str, Studio]) -> None:
    url, made = studio
    assert post(url, png((300, 900), "L"), size="64x128").status_code == 200

    (asked,) = made.asked
    assert asked.picture is not None
    assert asked.mask is not None
    assert (asked.picture.size, asked.mask.size) == ((64, 128), (64, 128))


def test_a_full_queue_is_told_before_a_file_is_looked_at(studio: tuple[str, Studio]) -> None:
    url, made = studio
    gate = made.gate = Gate()
    threads = [threading.Thread(target=post, args=(url,)) for _ in range(2)]
    threads[0].start()
    assert gate.reached.wait(LONG)
    threads[1].start()
    while made.worker.engine._num_waiting() < 1:
        pass
    refusal = post(url, picture=b"no picture")
    gate.opened.set()
    for thread in threads:
        thread.join(LONG)

    assert refusal.status_code == 429
    assert int(refusal.headers["retry-after"]) >= 1
