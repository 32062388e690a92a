"""Pictures to make solids from: a solid that is lit, or the flat shape that stands for it; knows no network."""

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from services.tiny.train import scenes
from services.tiny.train.solids import Solid, depth

SIDE = 64  # pixels
FLAT = {"sphere": "circle", "cube": "square", "cone": "triangle"}  # what is drawn of them by `scenes`
TILTS = 0.3, 0.6  # radians that the camera looks down
BLURS = 0.3, 1.6  # pixels
AMBIENT = 0.35  # of the light; the rest comes from where the camera is
WIDTH = 1.3  # of half the picture, in the space
NUM_STRIDES = 40  # of a ray, at most
NEAR = 0.01  # of the surface
REACH = 1.8  # from the middle of the space to where rays begin: its corners are nearer
Vectors = NDArray[np.floating[Any]]


def view(solid: Solid, chance: random.Random) -> NDArray[np.uint8]:
    """Show the solid somewhere on a plain background, (64, 64, 3): mostly lit, or the flat shape that stands for it.

    Half of the pictures are a little blurred, as a model draws them.
    """
    picture = _sharp(solid, chance)
    if chance.random() < 0.5:
        blur = ImageFilter.GaussianBlur(chance.uniform(*BLURS))
        picture = np.asarray(Image.fromarray(picture).filter(blur))
    return picture


def _sharp(solid: Solid, chance: random.Random) -> NDArray[np.uint8]:
    background = chance.choice([colour for colour in scenes.COLOURS if colour != solid.colour])
    if solid.kind in FLAT and chance.random() < 1 / 3:
        return _flat(solid, background, chance)
    room = 0.6 * (1 - solid.radius)
    shift = chance.uniform(-room, room), chance.uniform(-room, room)
    return lit(solid, background, chance.uniform(0, 2 * np.pi), chance.uniform(*TILTS), shift)


def _flat(solid: Solid, background: str, chance: random.Random) -> NDArray[np.uint8]:
    radius = chance.uniform(*scenes.SIZES[solid.size])
    x, y = (chance.uniform(scenes.REACH * radius, SIDE - scenes.REACH * radius) for _ in range(2))
    shape = scenes.Shape(solid.colour, FLAT[solid.kind], solid.size, x, y, radius)
    return scenes.draw(scenes.Scene(background, (shape,)))


def lit(
    solid: Solid, background: str, turn: float, tilt: float, shift: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.uint8]:
    """Draw the solid as a camera far away sees it, (64, 64, 3).

    Args:
        solid: what is shown.
        background: its colour.
        turn: how far the camera is turned around z, in radians.
        tilt: how far it looks down, in radians.
        shift: of the solid's middle to the right and down, in parts of half the picture.
    """
    right = np.array([-np.sin(turn), np.cos(turn), 0])
    towards = np.array([np.cos(turn) * np.cos(tilt), np.sin(turn) * np.cos(tilt), np.sin(tilt)])
    up = np.cross(towards, right)
    rows, columns = (np.mgrid[:SIDE, :SIDE] + 0.5) / (SIDE / 2) - 1
    across, down = columns - shift[0], rows - shift[1]
    points = WIDTH * (across[..., None] * right - down[..., None] * up) + REACH * towards
    left = np.full((SIDE, SIDE), 2 * REACH)  # of each ray
    for _ in range(NUM_STRIDES):
        stride = np.clip(-_depth(solid, points), 0, left)
        points = points - stride[..., None] * towards
        left = left - stride
    is_hit = (_depth(solid, points) > -NEAR)[..., None]
    facing = np.maximum(_normals(solid, points) @ towards, 0)
    shade = (AMBIENT + (1 - AMBIENT) * facing)[..., None] * np.array(scenes.COLOURS[solid.colour])
    return np.where(is_hit, shade, np.array(scenes.COLOURS[background])).round().astype(np.uint8)


def _depth(solid: Solid, points: Vectors) -> Vectors:
    return solid.radius * depth(solid.kind, points / solid.radius)


def _normals(solid: Solid, points: Vectors) -> Vectors:
    slopes = np.stack(
        [_depth(solid, points + step) - _depth(solid, points - step) for step in 1e-3 * np.eye(3)], axis=-1
    )
    normals: Vectors = -slopes / np.maximum(np.linalg.norm(slopes, axis=-1, keepdims=True), 1e-9)
    return normals
