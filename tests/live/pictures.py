"""Files that clients upload, good and bad."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(width: int = 96, height: int = 80) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def png_bomb(side: int = 60_000) -> bytes:
    """A valid PNG of a few megabytes that would take 3.6 GB when decoded as grey."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Blocks that end in a full flush stand alone, so the same one serves for all rows; the checksum of zeros is known.
    compressor = zlib.compressobj(9, wbits=-15)
    block = compressor.compress(bytes((side + 1) * 60)) + compressor.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", side * (side + 1) % 65521, 1)
    rows = b"\x78\xda" + block * (side // 60) + compressor.flush() + checksum
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
