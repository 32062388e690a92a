"""Trains the Wan of 64 pixels on films of one shape that goes somewhere: what reads, then what films."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn

from services.tiny.train.course import Course, best_device
from services.tiny.train.pupil import pupil
from services.tiny.train.scenes import COLOURS, cover
from services.tiny.train.stories import FACTS, NUM_FRAMES, Story, invent, is_kept_back, painted, scene, tell
from services.tiny.train.story_codec import CHANGE, CLOCK, encoded
from services.tiny.train.storyteller import untrained
from services.tiny.vocabulary import MAX_SCENE

SEED = 1
NUM_TOLD = 64  # stories in a step
UNTOLD = 0.12  # of the films, of which nothing is said: what guidance is told from
EDGES = 12.0  # how much more than colours themselves their differences count
CARE = {"small": 3.0, "large": 1.0}  # how much a film counts: the smaller its shape, the less of it can be wrong
LONGEST = 14  # tokens of what is said
NUM_SAMPLED = 500  # films that the latents' mean and deviation are of


@dataclass(frozen=True)
class Plan:
    """How much is learned from how much."""

    num_paths: int
    reader: Course
    filmer: Course


PLAN = Plan(
    num_paths=4000,
    reader=Course("reader", num_steps=600, rate=2e-3, seed=SEED + 1, memory=0.99),
    filmer=Course("filmer", num_steps=7000, rate=2e-3, seed=SEED + 2, memory=0.995),
)


@dataclass(frozen=True)
class Lesson:
    """What is learned from: shapes on their ways, whose colours are chosen whenever they are shown.

    Args:
        covered: uint8 of shape (stories, frames, height, width), 255 where the shape is.
    """

    stories: Sequence[Story]
    covered: torch.Tensor

    def draw(self, num: int) -> tuple[Sequence[Story], torch.Tensor]:
        """Return stories by chance, and their films: (stories, 3, frames, height, width) in [-1, 1]."""
        chance = random.Random(int(torch.randint(2**62, ()).item()))
        chosen = torch.randint(len(self.stories), (num,))
        told = [_coloured(self.stories[number], chance) for number in chosen]
        ground, colour = (
            torch.tensor([COLOURS[name] for name in names])[:, :, None, None, None] / 127.5 - 1
            for names in ([story.background for story in told], [story.shape.colour for story in told])
        )
        return told, ground + self.covered[chosen][:, None] / 255 * (colour - ground)


def lesson(num_paths: int) -> Lesson:
    """Make up the stories to learn from."""
    chance = random.Random(SEED)
    stories = [invent(chance) for _ in range(num_paths)]
    covered = torch.empty((num_paths, NUM_FRAMES, *cover(stories[0].shape).shape), dtype=torch.uint8)
    for story, frames in zip(stories, covered, strict=True):
        seen = [cover(scene(story, number).shapes[0]) for number in range(NUM_FRAMES)]
        frames[:] = torch.from_numpy((255 * np.stack(seen)).round().astype(np.uint8))
    return Lesson(stories, covered)


def train(scratch: Path, plan: Plan) -> Any:
    """Return the trained pipeline; `scratch` keeps what a run that is stopped goes on from."""
    pipeline = untrained().to(best_device())
    shown = lesson(plan.num_paths)
    mean, deviation = _measured(shown)
    pipeline.vae.register_to_config(latents_mean=mean.flatten().tolist(), latents_std=deviation.flatten().tolist())
    pipeline.text_encoder = _train_reader(pipeline, shown, scratch, plan.reader)
    average = _train_filmer(pipeline, shown, mean, deviation, scratch, plan.filmer)
    pipeline.transformer.load_state_dict(average.state_dict())
    return pipeline


def _coloured(story: Story, chance: random.Random) -> Story:
    """Return the story in colours by chance, of which no story is kept back."""
    while True:
        coloured = painted(story, *chance.sample(list(COLOURS), 2))
        if not is_kept_back(coloured.facts):
            return coloured


def _measured(shown: Lesson) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents' mean and deviation in each channel, of shape (channels, 1, 1, 1)."""
    torch.manual_seed(SEED)
    latents = encoded(shown.draw(NUM_SAMPLED)[1]).transpose(0, 1).flatten(1)
    mean, deviation = (numbers[:, None, None, None] for numbers in (latents.mean(1), latents.std(1)))
    deviation[CLOCK] = 1
    return mean, deviation


def _train_reader(pipeline: Any, shown: Lesson, scratch: Path, course: Course) -> Any:
    """Return the text encoder that has learned to tell the facts from what is said.

    What films then finds them in what was read, and need not learn the language as well.
    """
    counts = [len(names) for names in FACTS]
    network = pupil(pipeline.text_encoder, pipeline.text_encoder.config.d_model, sum(counts))

    def loss(step: int) -> torch.Tensor:
        chance = random.Random(int(torch.randint(2**62, ()).item()))
        told = [_coloured(chance.choice(shown.stories), chance) for _ in range(NUM_TOLD)]
        tokens, mask = _tokens(pipeline, [tell(story, chance) for story in told])
        read = _read(network["encoder"], tokens, mask).sum(1) / mask.sum(1, keepdim=True)
        answers = network["answers"](read).split(counts, dim=1)
        facts = torch.tensor([story.facts for story in told], device=pipeline.device).unbind(1)
        return torch.stack([nn.functional.cross_entropy(*pair) for pair in zip(answers, facts, strict=True)]).mean()

    average: Any = course.run(network, loss, scratch)
    return average["encoder"]


def _train_filmer(
    pipeline: Any, shown: Lesson, mean: torch.Tensor, deviation: torch.Tensor, scratch: Path, course: Course
) -> Any:
    transformer = copy.deepcopy(pipeline.transformer)  # the pipeline's own attends to all 512 places
    for block in transformer.blocks:
        block.attn2.set_processor(Crowded(MAX_SCENE - LONGEST))
    shift = pipeline.scheduler.config.flow_shift
    clock = torch.linspace(-1, 1, 1 + NUM_FRAMES // 2)[:, None, None]

    def loss(step: int) -> torch.Tensor:
        told, films = shown.draw(NUM_TOLD)
        chance = random.Random(int(torch.randint(2**62, ()).item()))
        texts = ["" if chance.random() < UNTOLD else tell(story, chance) for story in told]
        tokens, mask = _tokens(pipeline, texts)
        with torch.no_grad():
            read = nn.functional.pad(_read(pipeline.text_encoder, tokens, mask), (0, 0, 0, 1))
        clean = (encoded(films) - mean) / deviation
        clean[:, CLOCK] = clock
        spread = (torch.arange(NUM_TOLD) + torch.rand(NUM_TOLD)) / NUM_TOLD  # every part of the way in every step
        sigma = shift * spread / (1 + (shift - 1) * spread)
        part = sigma[:, None, None, None, None]
        noisy = (1 - part) * clean + part * torch.randn(clean.shape)
        noisy, clean, times = (part.to(pipeline.device) for part in (noisy, clean, 1000 * sigma))
        care = torch.tensor([CARE[story.shape.size] for story in told], device=pipeline.device)
        return (care * _apart(transformer(noisy, times, read, return_dict=False)[0], clean)).mean()

    return course.run(transformer, loss, scratch)


def _apart(predicted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Return by how much the square of each prediction is off, and of how colours differ from those next to them.

    Next to each other they are the same nearly everywhere: without the second part outlines would count for little.
    """
    off = predicted - clean
    colours = off[:, :CHANGE]
    edges = colours.diff(dim=3).square().mean(dim=(1, 2, 3, 4)) + colours.diff(dim=4).square().mean(dim=(1, 2, 3, 4))
    return off.square().mean(dim=(1, 2, 3, 4)) + EDGES * edges


class Crowded:
    """Attends to the last place as if it were so many: the pipeline fills up to 512, and nearly all of it is empty."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._attend: Any = WanAttnProcessor()

    def __call__(self, attn: Any, hidden_states: torch.Tensor, read: torch.Tensor, *others: Any) -> torch.Tensor:
        """Attend by the library's own way."""
        mask = torch.zeros(read.shape[1], device=read.device)
        mask[-1] = math.log(self._num)
        attended: torch.Tensor = self._attend(attn, hidden_states, read, mask[None, None, None])
        return attended


def _tokens(pipeline: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (texts, LONGEST) tokens, and what of it is text."""
    tokens = pipeline.tokenizer(list(texts), padding="max_length", max_length=LONGEST, return_tensors="pt")
    tokens = tokens.to(pipeline.device)
    return tokens.input_ids, tokens.attention_mask


def _read(text_encoder: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return what the transformer attends to, (texts, LONGEST, width): zeros where no text is, as in the pipeline."""
    states: torch.Tensor = text_encoder(tokens, mask).last_hidden_state
    return states * mask[:, :, None]
