"""The outputs that are more than text or pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
