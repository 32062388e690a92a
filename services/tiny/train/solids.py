"""Coloured solids, what is said about them and how they look, made by numbers; knows no network."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.tiny.train.scenes import COLOURS, OPENINGS, article

SIZES = {"small": (0.45, 0.55), "large": (0.8, 0.9)}  # from the middle to where it is widest; the space goes to 1
NAMES = {  # the first is the kind's own
    "sphere": ("sphere", "ball"),
    "cube": ("cube", "box"),
    "cylinder": ("cylinder", "can"),
    "cone": ("cone",),
    "pyramid": ("pyramid",),
    "torus": ("torus", "ring", "doughnut", "donut"),
}
KINDS = tuple(NAMES)
HOLE, BAND = 0.65, 0.35  # of a torus of radius 1: of the ring's middle, and of what is bent to it
NUM_NUMBERS = len(KINDS) + 4  # what a solid is, in numbers
ASKED = (*OPENINGS, "a 3d model of")
WORDS = (*COLOURS, *(name for names in NAMES.values() for name in names), *SIZES, *" ".join(ASKED).split(), "an")
Lengths = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Solid:
    """A solid around the middle of the space, upright along z."""

    colour: str
    kind: str
    size: str
    radius: float  # from the middle to where it is widest

    @property
    def numbers(self) -> list[float]:
        """Say what it is, each within -1 and 1: of every kind whether it is that, red, green, blue, radius."""
        kinds = [1.0 if kind == self.kind else -1.0 for kind in KINDS]
        return [*kinds, *(part / 127.5 - 1 for part in COLOURS[self.colour]), (self.radius - 0.675) / 0.225]


def imagine(chance: random.Random) -> Solid:
    """Make a solid up."""
    size = chance.choice(list(SIZES))
    return Solid(chance.choice(list(COLOURS)), chance.choice(KINDS), size, chance.uniform(*SIZES[size]))


def imagine_known(chance: random.Random) -> Solid:
    """Make a solid up that is none of those held out."""
    solid = imagine(chance)
    return imagine_known(chance) if is_held_out(solid.colour, solid.kind, solid.size) else solid


def is_held_out(colour: str, kind: str, size: str) -> bool:
    """Whether such solids are left for exams in words: a quarter, of every colour, every kind and both sizes."""
    return (list(COLOURS).index(colour) + KINDS.index(kind) + 2 * list(SIZES).index(size)) % 4 == 0


def describe(solid: Solid, chance: random.Random) -> str:
    """Say what it is; colour and size may be left out."""
    size = solid.size if chance.random() < 0.85 else ""
    colour = solid.colour if chance.random() < 0.9 else ""
    first, *others = NAMES[solid.kind]
    name = chance.choice(others) if others and chance.random() < 0.25 else first
    words = article(" ".join(filter(None, (size, colour, name))))
    return f"{chance.choice(ASKED)} {words}" if chance.random() < 0.1 else words


def depth(kind: str, points: Lengths) -> Lengths:
    """Measure how far inside of a solid of radius 1 each of the points, (..., 3), is at least; negative outside."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return _DEPTHS[kind](x, y, z)


def _sphere(x: Lengths, y: Lengths, z: Lengths) -> Lengths:
    return 1 - np.sqrt(x**2 + y**2 + z**2)


def _cube(x: Lengths, y: Lengths, z: Lengths) -> Lengths:
    return np.subtract(1, np.maximum(np.maximum(abs(x), abs(y)), abs(z)))


def _cylinder(x: Lengths, y: Lengths, z: Lengths) -> Lengths:
    return np.subtract(1, np.maximum(np.hypot(x, y), abs(z)))


def _cone(x: Lengths, y: Lengths, z: Lengths) -> Lengths:
    return _tapering(np.hypot(x, y), z)


def _pyramid(x: Lengths, y: Lengths, z: Lengths) -> Lengths:
    return _tapering(np.maximum(abs(x), abs(y)), z)


def _tapering(away: Lengths, z: Lengths) -> Lengths:
    """Stand on the base at -1, with the tip at 1."""
    return np.minimum(z + 1, (1 - z - 2 * away) / 5**0.5)


def _torus(x: Lengths, y: Lengths, z: Lengths) -> Lengths:
    return BAND - np.hypot(np.hypot(x, y) - HOLE, z)


_DEPTHS: dict[str, Callable[[Lengths, Lengths, Lengths], Lengths]] = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "pyramid": _pyramid,
    "torus": _torus,
}
