"""A film that is a file: bytes in, frames out; for files that are ours."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from PIL import Image, ImageSequence

MILLISECONDS = 1000


@dataclass(frozen=True)
class Film:
    """Frames of one size, uint8 of shape (height, width, 3), which may be read once."""

    frame_rate: int
    num_frames: int
    frames: Iterator[NDArray[np.uint8]]


def read(data: bytes) -> Film:
    """Read an MP4, or an animated GIF or WebP; its frames are decoded when they are asked for.

    Raises:
        ValueError: it is none; also the frames may.
    """
    try:
        return mp4(data) if data[4:8] == b"ftyp" else animation(data)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError("this is no film") from error


def mp4(data: bytes) -> Film:
    """Read H.264, whose colours are as `mp4.Encoder` writes them."""
    container = av.open(BytesIO(data), "r")
    stream = container.streams.video[0]

    def frames() -> Iterator[NDArray[np.uint8]]:
        with container:
            for frame in container.decode(stream):
                rgb = frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709)
                yield rgb.to_ndarray().astype(np.uint8, copy=False)

    return Film(round(stream.average_rate or 1), stream.frames, frames())


def animation(data: bytes) -> Film:
    """Read GIF or WebP; their frames are shown for whole ticks, and so the rate is that of all of them."""
    file = Image.open(BytesIO(data), formats=("GIF", "WEBP"))
    num_frames, milliseconds = 0, 0
    for frame in ImageSequence.Iterator(file):
        frame.load()  # until then, that of a WebP does not know how long it is shown
        num_frames, milliseconds = num_frames + 1, milliseconds + frame.info.get("duration", MILLISECONDS)
    frames = (np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file))
    return Film(max(1, round(MILLISECONDS * num_frames / max(1, milliseconds))), num_frames, frames)
