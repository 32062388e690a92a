"""Animated GIF and WebP, by what Pillow finds in them."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from services.media import animation

PIXELS = st.integers(1, 40)


def shades(num_frames: int, height: int = 48, width: int = 64) -> list[np.ndarray[Any, Any]]:
    return [np.full((height, width, 3), 20 + 200 * nth // num_frames, np.uint8) for nth in range(num_frames)]


def gif(frame_rate: int, frames: list[np.ndarray[Any, Any]], comment: str = "") -> bytes:
    film = animation.Gif(frame_rate, comment)
    return b"".join([*map(film.add, frames), film.close()])


def webp(frame_rate: int, frames: list[np.ndarray[Any, Any]], description: str = "", xmp: bytes = b"") -> bytes:
    film = animation.Webp(frame_rate, description, xmp)
    made = b"".join([*map(film.add, frames), film.close()])
    return animation.sized(made, len(made))


@pytest.mark.parametrize("make", [gif, webp])
@given(num_frames=st.integers(1, 12), frame_rate=st.integers(1, 30), height=PIXELS, width=PIXELS)
@settings(max_examples=25)
def test_a_film_is_shown_at_its_rate_for_ever(
    make: Any, num_frames: int, frame_rate: int, height: int, width: int
) -> None:
    frames = shades(num_frames, height, width)
    with Image.open(io.BytesIO(make(frame_rate, frames))) as film:
        shown = [(np.asarray(each.convert("RGB")), each.info["duration"]) for each in ImageSequence.Iterator(film)]
        loop = film.info["loop"]

    tick = 10 if make is gif else 1
    durations = [duration for _, duration in shown]
    assert loop == 0
    assert sum(durations) == pytest.approx(1000 * num_frames / frame_rate, abs=tick / 2 + 0.001)
    assert max(durations) - min(durations) <= tick
    assert len(shown) == num_frames
    for (found, _), frame in zip(shown, frames, strict=True):
        assert found.shape == frame.shape
        assert np.abs(found.astype(int) - frame).max() <= 2


def test_each_frame_of_a_gif_has_the_colours_that_it_needs() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    red, blue = np.zeros((2, 48, 64, 3), np.uint8)
    red[..., 0], blue[..., 2] = ramp, ramp
    with Image.open(io.BytesIO(gif(5, [red, blue]))) as film:
        found = [np.asarray(each.convert("RGB")).astype(int) for each in ImageSequence.Iterator(film)]

    assert np.abs(found[0] - red).max() <= 6
    assert np.abs(found[1] - blue).max() <= 6


def test_a_gif_is_seen_while_it_arrives() -> None:
    film = animation.Gif(5)
    arrived = b"".join(map(film.add, shades(3)))
    with Image.open(io.BytesIO(arrived)) as picture:
        assert sum(1 for _ in zip(range(3), ImageSequence.Iterator(picture), strict=True)) == 3


def test_what_is_said_about_a_film_is_there() -> None:
    said = "x" * 700
    with Image.open(io.BytesIO(gif(7, shades(2), said))) as film:
        assert film.info["comment"] == said.encode()
    with Image.open(io.BytesIO(webp(7, shades(2), said, b"<xmp/>"))) as film:
        assert film.getexif()[270] == said
        assert film.info["xmp"] == b"<xmp/>"
        assert getattr(film, "is_animated", False)


@pytest.mark.parametrize("film", [animation.Gif(7), animation.Webp(7)])
def test_what_is_no_film_is_refused(film: Any) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        film.close()
    film.add(shades(1)[0])
    with pytest.raises(ValueError, match="the first had"):
        film.add(shades(1, 32)[0])
