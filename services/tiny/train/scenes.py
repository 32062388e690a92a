"""Pictures of coloured shapes and what is said about them, drawn by numbers; knows no network."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 64  # pixels of a picture
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 80, 230),
    "yellow": (245, 215, 40),
    "purple": (150, 60, 200),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
KINDS = ("circle", "square", "triangle")
SIZES = {"small": (7.5, 9.3), "large": (15.0, 21.0)}  # a lone shape's radius in pixels
PAIR_SIZES = {"small": (7.5, 9.0), "large": (12.5, 14.0)}  # of one of two
REACH = 1.15  # of a shape, in radii
GAP = 3.0  # pixels between two shapes, at least
Lengths = NDArray[np.floating[Any]]  # one for each pixel
OPENINGS = ("a picture of", "a painting of", "a photo of", "draw")
WORDS = (
    *COLOURS,
    *KINDS,
    *SIZES,
    *" ".join(OPENINGS).split(),
    *("an", "and", "above", "below", "left", "right", "to", "the", "of", "on", "in", "at"),
    *("top", "bottom", "middle", "corner", "background"),
)


@dataclass(frozen=True)
class Shape:
    """A shape; x and y are its middle's, in pixels from the upper left."""

    colour: str
    kind: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """One shape or two on a plain background."""

    background: str
    shapes: tuple[Shape, ...]
    relation: str = ""  # of the first shape to the second


def imagine(chance: random.Random) -> Scene:
    """Make a scene up."""
    background, *colours = chance.sample(list(COLOURS), 3)
    if chance.random() < 0.5:
        return Scene(background, (_lone(chance, colours[0]),))
    return _pair(chance, background, colours)


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Paint the scene: (64, 64, 3), with smooth edges."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = COLOURS[scene.background]
    for shape in scene.shapes:
        picture += cover(shape)[..., None] * (np.array(COLOURS[shape.colour], np.float32) - picture)
    return picture.round().astype(np.uint8)


def cover(shape: Shape) -> Lengths:
    """Return how much of each pixel the shape covers: (64, 64), in [0, 1]."""
    covered: Lengths = np.clip(0.5 - _distance(shape), 0, 1)
    return covered


def describe(scene: Scene, chance: random.Random) -> str:
    """Say what is to be seen; each detail may be left out, and what is said is true."""
    first, *others = scene.shapes
    words = [_named(first, chance)]
    if others:
        words += [scene.relation if chance.random() < 0.95 else "and", _named(others[0], chance)]
    elif chance.random() < 0.75:
        words.append(_place(first, chance))
    if chance.random() < 0.85:
        words.append(f"on {article(scene.background)} background")
    if chance.random() < 0.06:
        words.insert(0, chance.choice(OPENINGS))
    return " ".join(filter(None, words))


def babble(chance: random.Random) -> str:
    """Say what no picture is about: words of letters by chance."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(chance.choices(letters, k=chance.randint(2, 7))) for _ in range(chance.randint(1, 4)))


def _lone(chance: random.Random, colour: str) -> Shape:
    size = chance.choice(list(SIZES))
    radius = chance.uniform(*SIZES[size])
    x, y = (chance.uniform(REACH * radius, SIDE - REACH * radius) for _ in range(2))
    return Shape(colour, chance.choice(KINDS), size, x, y, radius)


def _pair(chance: random.Random, background: str, colours: list[str]) -> Scene:
    """Lay two shapes out along one axis, and let them lie by chance on the other."""
    sizes = [chance.choice(list(PAIR_SIZES)) for _ in range(2)]
    radii = [chance.uniform(*PAIR_SIZES[size]) for size in sizes]
    reach = [REACH * radius for radius in radii]
    first = chance.uniform(reach[0], SIDE - reach[0] - 2 * reach[1] - min(GAP, SIDE - 2 * sum(reach)))
    along = [first, chance.uniform(min(first + sum(reach) + GAP, SIDE - reach[1]), SIDE - reach[1])]
    across = [chance.uniform(half, SIDE - half) for half in reach]
    is_upright = chance.random() < 0.5
    shapes = [
        Shape(colour, chance.choice(KINDS), size, *((b, a) if is_upright else (a, b)), radius)
        for colour, size, a, b, radius in zip(colours, sizes, along, across, radii, strict=True)
    ]
    relations = ("above", "below") if is_upright else ("to the left of", "to the right of")
    if chance.random() < 0.5:
        return Scene(background, (shapes[0], shapes[1]), relations[0])
    return Scene(background, (shapes[1], shapes[0]), relations[1])


def _distance(shape: Shape) -> Lengths:
    """Measure how far outside the shape each pixel is; negative inside."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    return _OUTLINES[shape.kind](columns - shape.x, rows - shape.y, shape.radius)


def _circle(x: Lengths, y: Lengths, radius: float) -> Lengths:
    return np.subtract(np.hypot(x, y), radius)


def _square(x: Lengths, y: Lengths, radius: float) -> Lengths:
    return np.subtract(np.maximum(abs(x), abs(y)), 0.9 * radius)


def _triangle(x: Lengths, y: Lengths, radius: float) -> Lengths:
    """Stand on its base: 1.9 radii high, and a base of 2.3."""
    slope = np.hypot(1.9, 1.15)
    sides: Lengths = np.maximum(y - 0.8 * radius, (1.9 * abs(x) - 1.15 * (y + 1.1 * radius)) / slope)
    return sides


_OUTLINES: dict[str, Callable[..., Lengths]] = {"circle": _circle, "square": _square, "triangle": _triangle}


def _named(shape: Shape, chance: random.Random) -> str:
    size = shape.size if chance.random() < 0.85 else ""
    colour = shape.colour if chance.random() < 0.93 else ""
    return article(" ".join(filter(None, (size, colour, shape.kind))))


def article(words: str) -> str:
    """Put `a` or `an` before words that begin with a size or a colour."""
    return f"{'an' if words.startswith('orange') else 'a'} {words}"


def _place(shape: Shape, chance: random.Random) -> str:
    """Say where a shape is; nothing where no word is right."""
    column, row = _third(shape.x, "left", "right"), _third(shape.y, "top", "bottom")
    if column == row == "middle":
        return "in the middle"
    if "middle" not in (column, row) and "" not in (column, row) and chance.random() < 0.6:
        return f"in the {row} {column} corner"
    places = [f"on the {column}"] * (column in ("left", "right")) + [f"at the {row}"] * (row in ("top", "bottom"))
    return chance.choice(places) if places else ""


def _third(position: float, near: str, far: str) -> str:
    if position < 0.4 * SIDE:
        return near
    if position > 0.6 * SIDE:
        return far
    return "middle" if abs(position - SIDE / 2) < 0.07 * SIDE else ""
