"""Films of coloured shapes that move, drawn by numbers; knows no network.

Everything drifts to the right, by as much from each frame to the next, and leaves the picture where it ends.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from services.tiny.train.scenes import Scene, draw

NUM_FRAMES = 8
MOST_MOTION = 255
MOST_WAY = 16.0  # pixels from the first frame to the eighth, at the most motion


def film(scene: Scene, motion: float, num_frames: int = NUM_FRAMES) -> NDArray[np.uint8]:
    """Draw the frames: (frames, 64, 64, 3)."""
    return np.stack([draw(moved(scene, way(motion, number))) for number in range(num_frames)])


def way(motion: float, number: int) -> float:
    """Return how many pixels are gone at this frame."""
    return MOST_WAY * motion / MOST_MOTION * number / (NUM_FRAMES - 1)


def moved(scene: Scene, way: float) -> Scene:
    """Return the scene with everything so many pixels further on the right."""
    return dataclasses.replace(
        scene, shapes=tuple(dataclasses.replace(shape, x=shape.x + way) for shape in scene.shapes)
    )
