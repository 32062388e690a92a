"""WebP: a picture as smaller bytes."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base


def encode(pixels: NDArray[np.uint8], quality: int, description: str = "", xmp: bytes = b"") -> bytes:
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
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, exif=exif, xmp=xmp)
    return file.getvalue()
