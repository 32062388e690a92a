"""Judges of what a trained tiny checkpoint makes: plain measurements, which know nothing of its training."""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUES = (("red", 15), ("orange", 42), ("yellow", 70), ("green", 175), ("blue", 252), ("purple", 325), ("red", 361))
DARK = 80  # of 255: where all channels are darker, it is black
GREY = 0.3  # of the brightest channel: where all are as near to it, it is black or white
NUM_SPECKS = 16  # pixels: what is smaller is no shape
NUM_SEEN = 200  # pixels, of a small shape; what is smaller may be a speck
RIM = 0.25  # of a patch's pixels: where fewer are surrounded by others, it is no shape either
LARGE = 17.0  # pixels: the root of a large shape's area is larger, a small one's is smaller
BASE, HEIGHT = 1.556, 1.285  # of a triangle whose area is 1
Where = NDArray[np.floating[Any]]
IDEALS = {  # fullness, roundness and corners, as `touch` measures them, of the smooth solid around z
    "sphere": (np.pi / 6, 1.0, 1.0),
    "cube": (1.0, np.pi / 6, 2**0.5),
    "cylinder": (np.pi / 4, 2 / 3, 1.0),
    "cone": (np.pi / 12, 16 / (1 + 5**0.5) ** 3, 1.0),
    "pyramid": (1 / 3, 16 * np.pi / (1 + 5**0.5) ** 3 / 4, 2**0.5),
}
BROAD = 1.35  # of a space from -1 to 1: a large solid is broader, a small one narrower
OUTLINES: dict[
    str, Callable[[Where, Where], NDArray[np.bool_]]
] = {  # of area 1, around 0; a patch is of the kind that it overlaps most
    "circle": lambda x, y: np.hypot(x, y) < np.pi**-0.5,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.5,
    "triangle": lambda x, y: (y < HEIGHT / 3) & (abs(x) < BASE / 2 * (y / HEIGHT + 2 / 3)),
}


@dataclass(frozen=True)
class Shape:
    """A patch of one colour: its middle and size in parts of the picture's height."""

    colour: str
    kind: str
    x: float
    y: float
    num_pixels: int

    @property
    def size(self) -> str:
        """Small or large, in a picture of 64 pixels."""
        return "large" if self.num_pixels**0.5 > LARGE else "small"


@dataclass(frozen=True)
class Sight:
    """What is to be seen in a picture."""

    background: str
    shapes: tuple[Shape, ...]  # the largest first

    @property
    def num_shapes(self) -> int:
        """How many are as large as small ones are."""
        return sum(shape.num_pixels >= NUM_SEEN for shape in self.shapes)

    def find(self, colour: str, kind: str, size: str = "") -> Shape | None:
        """The largest shape of this colour, if it is of this kind, and of this size where one is named."""
        shape = next((shape for shape in self.shapes if shape.colour == colour), None)
        is_meant = shape is not None and shape.kind == kind and size in ("", shape.size)
        return shape if is_meant else None


RELATIONS: dict[str, Callable[[Shape, Shape], bool]] = {
    "above": lambda one, other: one.y < other.y,
    "below": lambda one, other: one.y > other.y,
    "to the left of": lambda one, other: one.x < other.x,
    "to the right of": lambda one, other: one.x > other.x,
}
PLACES: dict[str, Callable[[Shape], bool]] = {
    "": lambda shape: True,
    "at the top": lambda shape: shape.y < 0.45,
    "at the bottom": lambda shape: shape.y > 0.55,
    "on the left": lambda shape: shape.x < 0.45,
    "on the right": lambda shape: shape.x > 0.55,
}


def look(picture: NDArray[np.uint8]) -> Sight:
    """Name the colour along the edges, and every patch of another colour."""
    names = np.array([[_colour(*pixel) for pixel in row] for row in picture.tolist()])
    edges = np.concatenate([names[0], names[-1], names[:, 0], names[:, -1]])
    found, counts = np.unique(edges, return_counts=True)
    background = str(found[counts.argmax()])
    shapes = [
        _shape(colour, patch, len(names))
        for colour in sorted(set(names.flatten().tolist()) - {background})
        for patch in _patches(names == colour)
    ]
    return Sight(background, tuple(sorted(shapes, key=lambda shape: -shape.num_pixels)))


@dataclass(frozen=True)
class Body:
    """What is to be felt of a mesh."""

    colour: str
    kind: str
    size: str
    is_closed: bool  # as one piece, each edge between two triangles


def touch(vertices: Where, faces: NDArray[np.integer[Any]], colours: Where) -> Body:
    """Name the colour, the kind and the size of a mesh: the kind by its genus, and what it is nearest to of `IDEALS`.

    Fullness is the part of its box that it fills; roundness the isoperimetric quotient, which is 1 of a sphere; corners
    how much further the outline reaches, as seen from above, than along x and y.
    """
    edges, counts = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)), axis=0, return_counts=True)
    num_parts = _num_parts(len(vertices), edges)
    genus = num_parts - (len(vertices) - len(edges) + len(faces)) / 2
    corner, *others = (vertices[faces[:, number]].astype(np.float64) for number in range(3))
    crossed = np.cross(others[0] - corner, others[1] - corner)
    areas = np.linalg.norm(crossed, axis=1) / 2
    volume = (crossed * corner).sum() / 6
    extent = np.ptp(vertices, axis=0)
    out = vertices[:, :2] - (vertices[:, :2].max(axis=0) + vertices[:, :2].min(axis=0)) / 2
    corners = np.hypot(*out.T).max() / (extent[:2].max() / 2)
    measured = volume / extent.prod(), 36 * np.pi * volume**2 / areas.sum() ** 3, corners
    kind = min(IDEALS, key=lambda kind: sum(np.log(np.maximum(measured, 1e-6) / np.array(IDEALS[kind])) ** 2))
    mean = np.average(colours[faces].mean(axis=1), axis=0, weights=areas)
    return Body(
        colour=_colour(*(255 * part for part in mean)),
        kind="torus" if genus == 1 else kind if genus == 0 else "",
        size="large" if extent.max() > BROAD else "small",
        is_closed=bool(num_parts == 1 and (counts == 2).all() and volume > 0),
    )


def luck(num_passed: int, num_asked: int, chance: float) -> float:
    """How likely at least so many pass where each passes by chance."""
    outcomes = range(num_passed, num_asked + 1)
    return sum(comb(num_asked, n) * chance**n * (1 - chance) ** (num_asked - n) for n in outcomes)


def _num_parts(num_vertices: int, edges: NDArray[np.integer[Any]]) -> int:
    """Count what hangs together: everyone takes the least number of those around until nothing changes."""
    part = np.arange(num_vertices)
    while True:
        least = part.copy()
        for one, other in (edges.T, edges.T[::-1]):
            np.minimum.at(least, one, part[other])
        least = least[least]
        if (least == part).all():
            return len(np.unique(part))
        part = least


def _colour(red: float, green: float, blue: float) -> str:
    hue, saturation, brightest = colorsys.rgb_to_hsv(red, green, blue)
    if brightest < DARK or saturation < GREY:
        return "black" if brightest < 128 else "white"
    return next(name for name, end in HUES if 360 * hue < end)


def _patches(mask: NDArray[np.bool_]) -> Sequence[NDArray[np.intp]]:
    """List the connected patches, each as (pixels, 2): rows and columns."""
    left = set(zip(*(axis.tolist() for axis in mask.nonzero()), strict=True))
    patches = []
    while left:
        patch = [left.pop()]
        for row, column in patch:  # grows while it is gone through
            for near in _neighbours(row, column):
                if near in left:
                    left.remove(near)
                    patch.append(near)
        if len(patch) >= NUM_SPECKS and not _is_rim(patch):
            patches.append(np.array(patch))
    return patches


def _is_rim(patch: Sequence[tuple[int, int]]) -> bool:
    """Whether the patch is a line, as where two colours blend into a third."""
    pixels = set(patch)
    num_inner = sum(pixels.issuperset(_neighbours(*pixel)) for pixel in pixels)
    return num_inner < RIM * len(pixels)


def _neighbours(row: int, column: int) -> Sequence[tuple[int, int]]:
    return (row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)


def _shape(colour: str, patch: NDArray[np.intp], height: int) -> Shape:
    middle = patch.mean(axis=0)
    y, x = (middle + 0.5) / height
    rows, columns = (
        (axis - at) / len(patch) ** 0.5 for axis, at in zip(np.mgrid[:height, :height], middle, strict=True)
    )
    pixels = tuple(patch.T)
    ideals = {kind: is_inside(columns, rows) for kind, is_inside in OUTLINES.items()}
    kind = max(ideals, key=lambda kind: ideals[kind][pixels].sum() / (len(patch) + ideals[kind].sum()))
    return Shape(colour, kind, float(x), float(y), len(patch))
