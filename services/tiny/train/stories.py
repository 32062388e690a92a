"""Films of one coloured shape that goes somewhere, and what is said about them, drawn by numbers; knows no network."""

import dataclasses
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.tiny.train.scenes import COLOURS, KINDS, SIDE, Scene, Shape, article, draw

NUM_FRAMES = 9
WAY = 24.0  # pixels from the first frame to the ninth; the middle one is in the middle of the picture
STRAY = 3.0  # pixels: how far beside the middle its way may lead
SIZES = {"small": 8.5, "large": 13.5}  # a shape's radius in pixels
MOTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
SAYINGS = {
    "right": ("moves to the right", "moving to the right", "moves right"),
    "left": ("moves to the left", "moving to the left", "moves left"),
    "up": ("moves up", "moving up", "rises"),
    "down": ("moves down", "moving down", "falls"),
}
WORDS = (
    *COLOURS,
    *KINDS,
    *SIZES,
    *" ".join(saying for sayings in SAYINGS.values() for saying in sayings).split(),
    *("a", "an", "on", "background"),
)
FACTS = tuple(
    tuple(names) for names in (COLOURS, COLOURS, KINDS, SIZES, MOTIONS)
)  # what there is to say: of the ground, the shape, and where it goes


@dataclass(frozen=True)
class Story:
    """A shape on a plain ground that goes one way; `shape` is as it is in the middle of the film."""

    background: str
    shape: Shape
    motion: str

    @property
    def facts(self) -> tuple[int, ...]:
        """The number of each of `FACTS`."""
        told = self.background, self.shape.colour, self.shape.kind, self.shape.size, self.motion
        return tuple(names.index(name) for names, name in zip(FACTS, told, strict=True))


def is_kept_back(facts: tuple[int, ...]) -> bool:
    """Whether nothing is learned from films of these: every tenth, for tests."""
    background, colour, kind, size, motion = facts
    return (background + 3 * colour + 7 * kind + 5 * size + 3 * motion) % 10 == 0


def invent(chance: random.Random) -> Story:
    """Make one up."""
    background, colour = chance.sample(list(COLOURS), 2)
    size, motion, beside = chance.choice(list(SIZES)), chance.choice(list(MOTIONS)), chance.uniform(-STRAY, STRAY)
    across, down = MOTIONS[motion]
    x, y = SIDE / 2 + abs(down) * beside, SIDE / 2 + abs(across) * beside
    return Story(background, Shape(colour, chance.choice(KINDS), size, x, y, SIZES[size]), motion)


def painted(story: Story, background: str, colour: str) -> Story:
    """Return the story in other colours."""
    return dataclasses.replace(story, background=background, shape=dataclasses.replace(story.shape, colour=colour))


def scene(story: Story, number: int) -> Scene:
    """Return what is to be seen at this frame."""
    shape, way = story.shape, WAY * (number / (NUM_FRAMES - 1) - 0.5)
    across, down = MOTIONS[story.motion]
    moved = dataclasses.replace(shape, x=shape.x + across * way, y=shape.y + down * way)
    return Scene(story.background, (moved,))


def film(story: Story) -> NDArray[np.uint8]:
    """Draw the frames: (frames, 64, 64, 3)."""
    return np.stack([draw(scene(story, number)) for number in range(NUM_FRAMES)])


def tell(story: Story, chance: random.Random) -> str:
    """Say what happens; each detail but the kind may be left out."""
    shape = story.shape
    size = shape.size if chance.random() < 0.85 else ""
    colour = shape.colour if chance.random() < 0.95 else ""
    words = [article(" ".join(filter(None, (size, colour, shape.kind))))]
    if chance.random() < 0.95:
        words.append(chance.choice(SAYINGS[story.motion]))
    if chance.random() < 0.85:
        words.append(f"on {article(story.background)} background")
    return " ".join(words)
