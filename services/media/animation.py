"""Films as animated GIF and as animated WebP, frame by frame; knows nothing of who made the frames."""

import struct
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image
from PIL.ExifTags import Base

QUALITY = 90  # of WebP
GIF_TICKS, WEBP_TICKS = 100, 1000  # a second: what durations are counted in
COLOURS = 256  # of each frame of a GIF
BLOCK = 255  # bytes of a GIF's blocks
HAS_EXIF, HAS_XMP, IS_ANIMATED = 0x08, 0x04, 0x02
WEBP_HEAD = 12  # bytes, of which the second four say how many follow


class Gif:
    """Turns frames into a GIF that is repeated for ever, each frame with colours of its own; belongs to one thread.

    Args:
        frame_rate: frames a second, 1 to 30; a hundredth of a second is all that the format can tell apart, so that
            frames differ by one, and the film does not.
        comment: in ASCII, of any length.

    Source: CompuServe, Graphics Interchange Format 89a; the block that repeats it is Netscape's.
    """

    def __init__(self, frame_rate: int, comment: str = "") -> None:
        self._pace = _Pace(frame_rate, GIF_TICKS)
        self._comment = comment.encode("ascii")

    def add(self, frame: NDArray[np.uint8]) -> bytes:
        """Return the frame, the first time with the file's head before it.

        Args:
            frame: RGB, shape (height, width, 3), the same for all.

        Raises:
            ValueError: the shape differs from the first frame's.
        """
        head = b"" if self._pace.num_frames else self._head(*frame.shape[:2])
        milliseconds = self._pace.next(frame) * (1000 // GIF_TICKS)
        shown = Image.fromarray(frame).quantize(COLOURS)
        return head + b"".join(GifImagePlugin.getdata(shown, duration=milliseconds, include_color_table=True))

    def close(self) -> bytes:
        """Return the end.

        Raises:
            ValueError: there was no frame.
        """
        self._pace.check_has_frames()
        return b";"

    def _head(self, height: int, width: int) -> bytes:
        screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0)
        loop = b"!\xff\x0bNETSCAPE2.0" + struct.pack("<BBHB", 3, 1, 0, 0)
        cut = [self._comment[at : at + BLOCK] for at in range(0, len(self._comment), BLOCK)]
        blocks = b"".join(bytes([len(block)]) + block for block in cut)
        return screen + loop + (b"!\xfe" + blocks + b"\0" if blocks else b"")


class Webp:
    """Turns frames into an animated WebP that is repeated for ever; `sized` finishes its head. Belongs to one thread.

    Args:
        frame_rate: frames a second, 1 to 30.
        description: goes into EXIF.
        xmp: a packet of metadata.

    Source: Google, WebP Container Specification.
    """

    def __init__(self, frame_rate: int, description: str = "", xmp: bytes = b"") -> None:
        self._pace = _Pace(frame_rate, WEBP_TICKS)
        exif = Image.Exif()
        exif[Base.ImageDescription.value] = description
        self._exif = exif.tobytes().removeprefix(b"Exif\0\0") if description else b""
        self._xmp = xmp

    def add(self, frame: NDArray[np.uint8]) -> bytes:
        """Return the frame, the first time with the file's head before it.

        Args:
            frame: RGB, shape (height, width, 3), the same for all.

        Raises:
            ValueError: the shape differs from the first frame's.
        """
        head = b"" if self._pace.num_frames else self._head(*frame.shape[:2])
        height, width, _ = frame.shape
        duration = self._pace.next(frame)
        still = BytesIO()
        Image.fromarray(frame).save(still, "WEBP", quality=QUALITY)
        place = number(0) + number(0) + number(width - 1) + number(height - 1) + number(duration)
        return head + chunk(b"ANMF", place + b"\x02" + still.getvalue()[WEBP_HEAD:])  # 2: over what was, not blended

    def close(self) -> bytes:
        """Return the end.

        Raises:
            ValueError: there was no frame.
        """
        self._pace.check_has_frames()
        named = ((b"EXIF", self._exif), (b"XMP ", self._xmp))
        return b"".join(chunk(name, content) for name, content in named if content)

    def _head(self, height: int, width: int) -> bytes:
        flags = IS_ANIMATED | (HAS_EXIF if self._exif else 0) | (HAS_XMP if self._xmp else 0)
        canvas = struct.pack("<I", flags) + number(width - 1) + number(height - 1)
        white, for_ever = b"\xff" * 4, b"\0\0"
        return b"RIFF\0\0\0\0WEBP" + chunk(b"VP8X", canvas) + chunk(b"ANIM", white + for_ever)


def sized(start: bytes, num_bytes: int) -> bytes:
    """Return the beginning of a file that `Webp` has made, with its true size in it.

    Args:
        start: its first bytes, at least twelve.
        num_bytes: of the whole file.
    """
    return start[:4] + struct.pack("<I", num_bytes - 8) + start[8:]


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of RIFF, which is of even length."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def number(value: int) -> bytes:
    """Return a number in three bytes."""
    return value.to_bytes(3, "little")


class _Pace:
    """How long each frame is shown, in whole ticks, so that the film does not run away from its rate."""

    def __init__(self, frame_rate: int, ticks: int) -> None:
        self._frame_rate = frame_rate
        self._ticks = ticks
        self._shape: tuple[int, ...] = ()
        self.num_frames = 0

    def next(self, frame: NDArray[np.uint8]) -> int:
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            raise ValueError(f"a frame has the shape {frame.shape}, the first had {self._shape}")
        begins, ends = (round(nth * self._ticks / self._frame_rate) for nth in (self.num_frames, self.num_frames + 1))
        self.num_frames += 1
        return ends - begins

    def check_has_frames(self) -> None:
        if not self.num_frames:
            raise ValueError("a film needs at least one frame")
