"""RIFF/WAVE, 16-bit PCM, mono; knows nothing of who made the sound. Source: RIFF/WAVE (Microsoft, 1991)."""

import struct

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 0xFFFFFFFF  # a size that players read as "until the end"


def header(sample_rate: int, num_bytes: int = UNKNOWN) -> bytes:
    """Return what comes before `num_bytes` of PCM."""
    fmt = struct.pack("<HHIIHH", 1, 1, sample_rate, sample_rate * 2, 2, 16)
    whole = UNKNOWN if num_bytes == UNKNOWN else 4 + 8 + len(fmt) + 8 + num_bytes
    head = struct.pack("<4sI4s4sI", b"RIFF", whole, b"WAVE", b"fmt ", len(fmt)) + fmt
    return head + struct.pack("<4sI", b"data", num_bytes)


def pcm(samples: NDArray[np.float32]) -> bytes:
    """Return samples as 16-bit PCM.

    Args:
        samples: shape (n,), in [-1, 1]; clipped outside, and NaN or infinite becomes silence.
    """
    finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    return np.rint(np.clip(finite, -1, 1) * 32767).astype("<i2").tobytes()


class Encoder:
    """Turns mono samples into WAV bytes, chunk by chunk; sizes are 0xFFFFFFFF, as the length is not known yet.

    Args:
        sample_rate: samples a second.
    """

    def __init__(self, sample_rate: int) -> None:
        self._header = header(sample_rate)

    def add(self, samples: NDArray[np.float32]) -> bytes:
        """Return the PCM of these samples, the first time with the WAV header before it."""
        return self.close() + pcm(samples)

    def close(self) -> bytes:
        """Return the header of a sound that had no samples, else nothing: an unknown length has no end mark."""
        head, self._header = self._header, b""
        return head
