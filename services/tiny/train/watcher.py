"""Teaches an image encoder to see: to tell from a picture what is on it, and where.

What films then finds all that in what was seen, and need not look for it in the latents as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.tiny.train.course import Course
from services.tiny.train.pupil import pupil
from services.tiny.train.scenes import COLOURS, KINDS, SIDE, Scene

NUM_SHOWN = 64  # pictures in a step
UNSEEN = -100  # what cross entropy leaves out
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
ACCURACY = 100.0  # how much a place counts: off by a tenth of the side, as much as a colour that is not known
COUNTS = (len(COLOURS), len(COLOURS), len(KINDS) * len(COLOURS), 3 * len(COLOURS))


def teach(image_encoder: Any, scenes: Sequence[Scene], pictures: torch.Tensor, scratch: Path, course: Course) -> Any:
    """Return the encoder that has learned what is on each of the pictures, uint8 of shape (n, 3, height, width)."""
    facts = [_facts(scene) for scene in scenes]
    told = [torch.tensor(fact).to(image_encoder.device) for fact in zip(*facts, strict=True)]
    network = pupil(image_encoder, image_encoder.config.projection_dim, sum(COUNTS))

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(pictures), (NUM_SHOWN,))
        seen = seen_by(network["encoder"], pictures[chosen])
        return _loss(network["answers"](seen).split(COUNTS, dim=1), [fact[chosen] for fact in told])

    average: Any = course.run(network, loss, scratch)
    return average["encoder"]


def seen_by(image_encoder: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return embeddings, (n, width), of pictures that are brought to the encoder as the pipeline brings them."""
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, DEVIATION))
    small = (pictures.float() / 255 - mean) / deviation
    rows = _resizing(pictures.shape[2], image_encoder.config.image_size)
    columns = _resizing(pictures.shape[3], image_encoder.config.image_size)
    embeddings: torch.Tensor = image_encoder((rows @ small @ columns.T).to(image_encoder.device)).image_embeds
    return embeddings


def _resizing(before: int, after: int) -> torch.Tensor:
    """Return the matrix, (after, before), by which lengths are resized; many times as fast as the library's call."""
    unit = torch.eye(before)[None, None]
    return nn.functional.interpolate(unit, (after, before), mode="bicubic", align_corners=True)[0, 0]


def _loss(answers: Sequence[torch.Tensor], told: Sequence[torch.Tensor]) -> torch.Tensor:
    """Score what is said of the background, and of a shape of each colour."""
    background, present, kind, place = answers
    grounds, kinds, places = told
    is_there = kinds != UNSEEN
    off = (place.view_as(places) - places).square().mean(2)[is_there].mean()
    return (
        nn.functional.cross_entropy(background, grounds)
        + nn.functional.binary_cross_entropy_with_logits(present, is_there.float())
        + nn.functional.cross_entropy(kind.view(*kinds.shape, -1).flatten(0, 1), kinds.flatten(), ignore_index=UNSEEN)
        + ACCURACY * off
    )


def _facts(scene: Scene) -> tuple[int, list[int], list[list[float]]]:
    """Number the ground's colour; of each colour, the shape's kind, place and radius."""
    kinds, places = [UNSEEN] * len(COLOURS), [[0.0] * 3 for _ in COLOURS]
    colours = list(COLOURS)
    for shape in scene.shapes:
        number = colours.index(shape.colour)
        kinds[number] = KINDS.index(shape.kind)
        places[number] = [length / SIDE - 0.5 for length in (shape.x, shape.y, shape.radius)]
    return colours.index(scene.background), kinds, places
