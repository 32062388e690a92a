"""PNG from pixels; knows nothing of who drew them."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of RGB pixels of shape (height, width, 3)."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
