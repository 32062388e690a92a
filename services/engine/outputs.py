"""The outputs that are more than text, and the check that they are numbers at all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.errors import GenerationFailed


@dataclass(frozen=True)
class Sound:
    """A stretch of mono sound."""

    samples: NDArray[np.float32]  # (n,) in [-1, 1]
    sample_rate: int  # samples a second


@dataclass(frozen=True)
class Mesh:
    """A closed surface of triangles with a colour at each vertex."""

    vertices: NDArray[np.float32]  # (n, 3)
    faces: NDArray[np.int64]  # (m, 3), counted from 0
    colours: NDArray[np.float32]  # (n, 3) in [0, 1]


def pixels(pictures: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round colours in [0, 1] to 8 bits.

    Raises:
        GenerationFailed: some are no numbers.
    """
    return (finite(pictures) * 255).round().astype(np.uint8)


def finite(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `numbers` if they are numbers: what overflowed would come out as black, or as silence.

    Raises:
        GenerationFailed: some are infinite or NaN.
    """
    if not np.isfinite(numbers).all():
        raise overflowed()
    return numbers


def overflowed() -> GenerationFailed:
    """What is said of a model whose numbers went beyond what its precision holds."""
    return GenerationFailed(
        "the model's numbers overflowed; try other parameters, or let the operator set ATELIER_DTYPE=float32"
    )
