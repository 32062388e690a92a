from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from services.media import png

PIXELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


@given(PIXELS)
@settings(deadline=None)
def test_every_pixel_comes_back(pixels: NDArray[np.uint8]) -> None:
    picture = Image.open(BytesIO(png.encode(pixels)))

    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (pixels.shape[1], pixels.shape[0]))
    assert (np.asarray(picture) == pixels).all()


@pytest.mark.parametrize("view", [np.s_[::2, ::3], np.s_[::-1], np.s_[:, :, ::-1]])
def test_a_view_of_a_larger_array_is_written_as_it_looks(view: tuple[slice, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)[view]

    assert (np.asarray(Image.open(BytesIO(png.encode(pixels)))) == pixels).all()


def test_the_same_pixels_make_the_same_file() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)

    assert png.encode(pixels) == png.encode(pixels.copy())
