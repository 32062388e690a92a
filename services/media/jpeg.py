"""JPEG: a picture as small bytes."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

QUALITY = 75
FULL_COLOUR = 90  # the quality from which on colours are stored for every pixel, and not for every second one


def encode(pixels: NDArray[np.uint8], quality: int = QUALITY, description: str = "", xmp: bytes = b"") -> bytes:
    """Encode a picture, shape (height, width, 3).

    Args:
        pixels: the picture.
        quality: 0 to 100.
        description: goes into EXIF.
        xmp: a packet of metadata.
    """
    exif = Image.Exif()
    if description:
        exif[Base.ImageDescription.value] = description
    file = BytesIO()
    subsampling = "4:4:4" if quality >= FULL_COLOUR else "4:2:0"
    Image.fromarray(pixels).save(
        file, "JPEG", quality=max(1, quality), subsampling=subsampling, exif=exif, xmp=xmp or None
    )
    return file.getvalue()
