"""PNG from pixels; knows nothing of who drew them."""

from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

XMP = "XML:com.adobe.xmp"
NO_TAGS: Mapping[str, str] = MappingProxyType({})


def encode(pixels: NDArray[np.uint8], tags: Mapping[str, str] = NO_TAGS, xmp: bytes = b"") -> bytes:
    """Return a PNG file of RGB pixels of shape (height, width, 3).

    Args:
        pixels: the picture.
        tags: are put before it, as tEXt, or as iTXt where they are not Latin-1.
        xmp: a packet of metadata, likewise.
    """
    info = PngInfo()
    for name, text in tags.items():
        info.add_text(name, text)
    if xmp:
        info.add_itxt(XMP, xmp.decode())
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()
