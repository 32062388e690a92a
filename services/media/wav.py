"""RIFF/WAVE, 16-bit PCM, written as a stream of unknown length; knows nothing of who made the sound."""

import struct
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

MEDIA_TYPE = "audio/wav"
UNKNOWN = 0xFFFFFFFF  # a size that players read as "until the end"
NO_TAGS: Mapping[str, str] = MappingProxyType({})


class Encoder:
    """Turns mono samples into WAV bytes, chunk by chunk.

    Args:
        sample_rate: samples a second.
        tags: text by the four letters that RIFF has for it: `ISFT` is the software, `ICMT` a comment.
    """

    def __init__(self, sample_rate: int, tags: Mapping[str, str] = NO_TAGS) -> None:
        fmt = struct.pack("<HHIIHH", 1, 1, sample_rate, sample_rate * 2, 2, 16)
        self._header = struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE") + chunk(b"fmt ", fmt)
        if tags:
            texts = (chunk(name.encode(), text.encode() + b"\0") for name, text in tags.items())
            self._header += chunk(b"LIST", b"INFO" + b"".join(texts))
        self._header += struct.pack("<4sI", b"data", UNKNOWN)

    def add(self, samples: NDArray[np.float32]) -> bytes:
        """Return the PCM of these samples, the first time with the WAV header before it.

        Args:
            samples: shape (n,), in [-1, 1]; clipped outside, and NaN or infinite becomes silence.

        Source: RIFF/WAVE (Microsoft, 1991); sizes are 0xFFFFFFFF, as the length is not known yet.
        """
        return self.close() + pcm(samples)

    def close(self) -> bytes:
        """Return the header of a sound that had no samples, else nothing: an unknown length has no end mark."""
        header, self._header = self._header, b""
        return header


def pcm(samples: NDArray[np.float32]) -> bytes:
    """Return samples as signed 16-bit numbers, the lower byte first."""
    finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    return np.rint(np.clip(finite, -1, 1) * 32767).astype("<i2").tobytes()


def sized(start: bytes, num_bytes: int) -> bytes:
    """Return the beginning of a file that `Encoder` has made, with its true sizes in it.

    Args:
        start: its first bytes, the head among them.
        num_bytes: of the whole file.
    """
    end = start.index(struct.pack("<4sI", b"data", UNKNOWN)) + 8
    sizes = (struct.pack("<I", num_bytes - place) for place in (8, end))
    return start[:4] + next(sizes) + start[8 : end - 4] + next(sizes) + start[end:]


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of RIFF, which is of even length."""
    return struct.pack("<4sI", name, len(content)) + content + bytes(len(content) % 2)
