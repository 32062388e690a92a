"""Teaches a text encoder to read: to tell from what is said about a scene what is on it.

What draws then finds the colours, kinds and places in what was read, and need not learn the language as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.tiny.train.course import Course
from services.tiny.train.pupil import pupil
from services.tiny.train.scenes import COLOURS, KINDS, SIDE, SIZES, Scene, Shape

NUM_CAPTIONS = 64  # in a step
NUM_PLACES = 8  # across, and down
UNSEEN = -100  # what cross entropy leaves out
COUNTS = (len(COLOURS), *(len(COLOURS), len(KINDS) + 1, len(SIZES), NUM_PLACES, NUM_PLACES) * 2)


def teach(text_encoder: Any, tokens: torch.Tensor, scenes: Sequence[Scene], scratch: Path, course: Course) -> Any:
    """Return the encoder that has learned to read `tokens`, (captions, length), each of the scene at its place.

    It learns to say all of it after the last word; what was not said it learns to guess, and so not to know.
    """
    device = text_encoder.device
    told = torch.tensor([_told(scene) for scene in scenes])
    network = pupil(text_encoder, text_encoder.config.hidden_size, sum(COUNTS))

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(tokens), (NUM_CAPTIONS,))
        read = network["encoder"](tokens[chosen].to(device))
        after = torch.cat(
            [read.pooler_output, read.last_hidden_state[:, -1]]
        )  # the first end of the text, and the last
        answers = network["answers"](after).split(COUNTS, dim=1)
        asked = told[chosen].repeat(2, 1).to(device).unbind(1)
        losses = [
            nn.functional.cross_entropy(answer, right, ignore_index=UNSEEN)
            for answer, right in zip(answers, asked, strict=True)
        ]
        return torch.stack(losses).mean()

    average: Any = course.run(network, loss, scratch)
    return average["encoder"]


def _told(scene: Scene) -> tuple[int, ...]:
    """Number the background's colour, and what there is to say of two shapes."""
    first, *others = scene.shapes
    second = _numbered(others[0]) if others else (UNSEEN, len(KINDS), UNSEEN, UNSEEN, UNSEEN)
    return list(COLOURS).index(scene.background), *_numbered(first), *second


def _numbered(shape: Shape) -> tuple[int, ...]:
    colour, kind, size = list(COLOURS).index(shape.colour), KINDS.index(shape.kind), list(SIZES).index(shape.size)
    return colour, kind, size, int(shape.x / SIDE * NUM_PLACES), int(shape.y / SIDE * NUM_PLACES)
