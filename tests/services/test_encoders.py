"""Encoders, by what independent readers find in their bytes, and by what they hold when they are let go."""

import base64
import io
import json
import threading
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import trimesh
from PIL import Image

from services.encoders import (
    Base64Encoder,
    Encoder,
    Mp4Encoder,
    ObjEncoder,
)
from services.engine.events import Done
from services.engine.outputs import Mesh, Sound, finite, pixels
from services.errors import GenerationFailed
from tests.services.conftest import LONG, Gate
from tests.services.encoding import png_encoder, wav_encoder

DONE = Done({"prompt_tokens": 3, "completion_tokens": 4}, "length")
GRADIENT = np.arange(16 * 8 * 3, dtype=np.uint8).reshape(16, 8, 3)
TETRAHEDRON = Mesh(
    np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
    np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3),
)


def encoded(encoder: Encoder, *outputs: Any, done: Done = DONE) -> bytes:
    try:
        return b"".join(map(encoder.add, outputs)) + encoder.close(done)
    finally:
        encoder.abort()


def test_a_picture_is_a_png_of_the_same_pixels() -> None:
    with Image.open(io.BytesIO(encoded(png_encoder(), GRADIENT))) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), GRADIENT)


def test_a_mesh_is_an_obj_with_its_colours() -> None:
    mesh: Any = trimesh.load(io.BytesIO(encoded(ObjEncoder(), TETRAHEDRON)), file_type="obj", process=False)

    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1 / 6)
    assert np.allclose(mesh.visual.vertex_colors[:, :3] / 255, TETRAHEDRON.colours, atol=1 / 255)


def test_sounds_are_one_wav_of_the_first_ones_rate() -> None:
    samples = np.linspace(-1, 1, 300, dtype=np.float32)
    sounds = [Sound(samples[:100], 24_000), Sound(samples[100:], 24_000)]
    read, rate = soundfile.read(io.BytesIO(encoded(wav_encoder(), *sounds)))

    assert rate == 24_000
    assert np.allclose(read, samples, atol=1e-4)


def test_no_sound_at_all_is_no_bytes() -> None:
    assert encoded(wav_encoder()) == b""


def test_frames_are_a_film_of_their_number_and_rate() -> None:
    film = encoded(Mp4Encoder(7), *(np.full((64, 64, 3), shade, np.uint8) for shade in (0, 100, 200)))

    with av.open(io.BytesIO(film), "r") as container:
        (stream,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 7
    assert np.allclose(frames, [0, 100, 200], atol=3)


def test_a_picture_in_json_is_openais_shape() -> None:
    encoder = Base64Encoder(png_encoder(), "png")
    document = json.loads(encoded(encoder, GRADIENT, done=Done({"images": 1})))

    assert encoder.media_type == "application/json"
    assert document["output_format"] == "png"
    assert document["usage"] == {"images": 1}
    assert isinstance(document["created"], int)
    assert base64.b64decode(document["data"][0]["b64_json"]) == encoded(png_encoder(), GRADIENT)


def test_an_encoder_that_streams_gives_bytes_on_the_way() -> None:
    sound = Sound(np.zeros(100, np.float32), 24_000)

    assert wav_encoder().add(sound) != b""
    film = Mp4Encoder(7)
    assert film.add(np.zeros((64, 64, 3), np.uint8)) != b""
    film.abort()


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (png_encoder, GRADIENT),
        (ObjEncoder, TETRAHEDRON),
        (wav_encoder, Sound(np.zeros(9, np.float32), 24_000)),
        (lambda: Mp4Encoder(7), GRADIENT),
        (lambda: Base64Encoder(Mp4Encoder(7), "mp4"), GRADIENT),
    ],
    ids=["png", "obj", "wav", "mp4", "base64"],
)
@pytest.mark.parametrize("stage", ["unused", "half", "closed"])
def test_an_encoder_may_be_aborted_at_any_time_and_twice(make: Any, output: Any, stage: str) -> None:
    encoder: Encoder = make()
    if stage != "unused":
        encoder.add(output)
    if stage == "closed":
        encoder.close(DONE)

    encoder.abort()
    encoder.abort()


def test_a_film_that_was_aborted_takes_no_more_frames() -> None:
    film = Mp4Encoder(7)
    film.add(GRADIENT)
    film.abort()

    with pytest.raises(ValueError, match="over"):
        film.add(GRADIENT)


class SlowFrame(np.ndarray[Any, Any]):
    """A frame at which the codec's thread is held."""

    gate = Gate()

    @property  # type: ignore[misc] # nobody sets it
    def shape(self) -> Any:
        self.gate()
        return np.ndarray.shape.__get__(self)


def test_a_film_is_not_freed_while_a_thread_is_in_it() -> None:
    film, is_freed = Mp4Encoder(7), threading.Event()

    def free() -> None:
        film.abort()
        is_freed.set()

    adding = threading.Thread(target=film.add, args=(GRADIENT.view(SlowFrame),))
    freeing = threading.Thread(target=free)
    adding.start()
    assert SlowFrame.gate.reached.wait(LONG)
    freeing.start()
    was_freed = is_freed.wait(0.2)  # it must not happen, however long one waits
    SlowFrame.gate.opened.set()
    adding.join(LONG)
    freeing.join(LONG)

    assert (was_freed, is_freed.is_set()) == (False, True)


def test_colours_are_rounded_to_eight_bits() -> None:
    assert pixels(np.array([0, 0.5 / 255, 0.501 / 255, 1], np.float32)).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_overflowed_is_a_failure_and_not_black(value: float) -> None:
    with pytest.raises(GenerationFailed, match="overflowed"):
        pixels(np.array([0, value], np.float32))
    with pytest.raises(GenerationFailed, match="ATELIER_DTYPE"):
        finite(np.array([0, value], np.float32))
