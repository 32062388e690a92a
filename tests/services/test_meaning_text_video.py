"""Films of words: judges, who measure pixels, know a film of what was told from another, also after the codec.

Stories are those that training keeps back: every tenth by what happens in them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.tiny.train import stories
from services.tiny.train.scenes import SIDE
from services.tiny.train.stories import MOTIONS, NUM_FRAMES, WAY, Story
from services.tiny.train.story_codec import encoded, story_codec
from tests.services import judges
from tests.services.judges import look, luck

NUM_FILMS = 32
MISSED = 5.0  # pixels: what a middle may be beside its way; nobody says where that crosses the picture
Frames = NDArray[np.uint8]  # (frames, height, width, 3)
Marks = dict[str, list[bool]]


@cache
def wishes() -> Sequence[Story]:
    """Stories that nothing was learned from, each of other facts."""
    chance, wished = random.Random(7), dict[tuple[int, ...], Story]()
    while len(wished) < NUM_FILMS:
        story = stories.invent(chance)
        if stories.is_kept_back(story.facts):
            wished.setdefault(story.facts, story)
    return list(wished.values())


@dataclass(frozen=True)
class Showing:
    """What is to be seen in each frame, and what should be."""

    story: Story
    grounds: Sequence[str]
    shapes: Sequence[judges.Shape | None]  # the largest of another colour than the ground's

    @property
    def seen(self) -> Sequence[judges.Shape]:
        return [shape for shape in self.shapes if shape is not None]

    @property
    def places(self) -> NDArray[np.floating[Any]]:
        """How far the shape has gone where it should go, and how far aside, in pixels from the middle: (frames, 2)."""
        across, down = MOTIONS[self.story.motion]
        middles = SIDE * np.array([(shape.x, shape.y) for shape in self.seen]).reshape(-1, 2) - SIDE / 2
        places: NDArray[np.floating[Any]] = middles @ np.array([[across, down], [down, across]]).T
        return places


def showing(story: Story, frames: Frames) -> Showing:
    sights = [look(frame) for frame in frames]
    return Showing(story, [sight.background for sight in sights], [next(iter(sight.shapes), None) for sight in sights])


@dataclass(frozen=True)
class Exam:
    """A property.

    Args:
        mark: whether it is right in a film.
        chance: the most that a model may hope for which knows all but this.
    """

    mark: Callable[[Showing], bool]
    chance: float


def is_on_its_ground(film: Showing) -> bool:
    """In every frame."""
    return set(film.grounds) == {film.story.background}


def is_of_its_colour(film: Showing) -> bool:
    """In all frames but one."""
    return sum(shape.colour == film.story.shape.colour for shape in film.seen) >= NUM_FRAMES - 1


def is_of_its_kind(film: Showing) -> bool:
    """In most frames."""
    return sum(shape.kind == film.story.shape.kind for shape in film.seen) > NUM_FRAMES / 2


def is_of_its_size(film: Showing) -> bool:
    """In most frames."""
    return sum(shape.size == film.story.shape.size for shape in film.seen) > NUM_FRAMES / 2


def goes_its_way(film: Showing) -> bool:
    """In three quarters of the frames it is where its story has it."""
    if len(film.seen) < NUM_FRAMES:
        return False
    ways = WAY * (np.arange(NUM_FRAMES) / (NUM_FRAMES - 1) - 0.5)
    return bool((np.abs(film.places - np.stack([ways, 0 * ways], axis=1)).max(axis=1) <= MISSED).mean() >= 0.75)


def goes_on(film: Showing) -> bool:
    """From frame to frame, but for one of them, it goes on, and never much further than else."""
    if len(film.seen) < NUM_FRAMES:
        return False
    steps = np.diff(film.places[:, 0]) / (WAY / (NUM_FRAMES - 1))  # 1 is an even one
    return bool(((steps > 0) & (steps < 2.5)).mean() > 0.8)


EXAMS = {
    "grounds": Exam(is_on_its_ground, chance=1 / 8),
    "colours": Exam(is_of_its_colour, chance=1 / 7),
    "kinds": Exam(is_of_its_kind, chance=1 / 3),
    "sizes": Exam(is_of_its_size, chance=1 / 2),
    "ways": Exam(goes_its_way, chance=1 / 4),
    "smoothness": Exam(goes_on, chance=1 / 4),
}
NUM_NEEDED = 29  # of the films


def marks(films: Sequence[Frames]) -> Marks:
    showings = [showing(story, frames) for story, frames in zip(wishes(), films, strict=True)]
    return {name: [exam.mark(film) for film in showings] for name, exam in EXAMS.items()}


def failed(films: Sequence[Frames]) -> list[str]:
    """Name the exams that the films of all wishes do not pass."""
    return [f"{name}: {sum(found)}" for name, found in marks(films).items() if sum(found) < NUM_NEEDED]


@cache
def drawn() -> Sequence[Frames]:
    """The films that were wished for, drawn by numbers."""
    return [stories.film(story) for story in wishes()]


@cache
@torch.inference_mode()
def kept() -> Sequence[Frames]:
    """What is left of them in the latents."""
    codec = story_codec()
    shown = torch.from_numpy(np.stack(drawn())).permute(0, 4, 1, 2, 3) / 127.5 - 1
    films = ((codec.decode(encoded(shown)).sample + 1) * 127.5).round().byte()
    return list(films.permute(0, 2, 3, 4, 1).numpy())


def test_nobody_passes_by_luck() -> None:
    for name, exam in EXAMS.items():
        assert luck(NUM_NEEDED, NUM_FILMS, exam.chance) < 1e-5, name


@pytest.mark.parametrize("films", [drawn, kept])
def test_films_of_what_was_told_pass(films: Callable[[], Sequence[Frames]]) -> None:
    assert not failed(films())


def test_films_that_are_swapped_fail_all() -> None:
    assert len(failed([*kept()[1:], kept()[0]])) == len(EXAMS)


@pytest.mark.parametrize("order", [[8, 7, 6, 5, 4, 3, 2, 1, 0], [0, 2, 1, 4, 3, 6, 5, 8, 7], [0] * 9], ids=str)
def test_frames_in_another_order_fail(order: list[int]) -> None:
    assert failed([frames[order] for frames in kept()])
