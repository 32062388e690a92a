"""RIFF/WAVE, 16-bit PCM, written as a stream of unknown length; knows nothing of who made the sound."""

import struct

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 0xFFFFFFFF  # a size that players read as "until the end"


class Encoder:
    """Turns mono samples into WAV bytes, chunk by chunk.

    Args:
        sample_rate: samples a second.
    """

    def __init__(self, sample_rate: int) -> None:
        fmt = struct.pack("<HHIIHH", 1, 1, sample_rate, sample_rate * 2, 2, 16)
        self._header = struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN, b"WAVE", b"fmt ", len(fmt)) + fmt
        self._header += struct.pack("<4sI", b"data", UNKNOWN)

    def add(self, samples: NDArray[np.float32]) -> bytes:
        """Return the PCM of these samples, the first time with the WAV header before it.

        Args:
            samples: shape (n,), in [-1, 1]; clipped outside, and NaN or infinite becomes silence.

        Source: RIFF/WAVE (Microsoft, 1991); sizes are 0xFFFFFFFF, as the length is not known yet.
        """
        finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        pcm = np.rint(np.clip(finite, -1, 1) * 32767).astype("<i2")
        return self.close() + pcm.tobytes()

    def close(self) -> bytes:
        """Return the header of a sound that had no samples, else nothing: an unknown length has no end mark."""
        header, self._header = self._header, b""
        return header
