"""JPEG: a small picture as small bytes."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 75


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture, shape (height, width, 3)."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
