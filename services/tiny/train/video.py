"""Trains the Stable Video Diffusion of 64 pixels on films of shapes that move: what decodes, what sees, what films."""

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from services.tiny.train import watcher
from services.tiny.train.codec import LATENTS
from services.tiny.train.course import Course, best_device
from services.tiny.train.film_codec import cell_numbers, threefold
from services.tiny.train.filmer import untrained
from services.tiny.train.motion import MOST_MOTION, film
from services.tiny.train.scenes import Scene, imagine

SEED = 1
NUM_SHOWN = 4  # frames in a step of the decoder's
NUM_FILMS = 4  # in a step of what films
UNSHOWN = 0.15  # of the films, whose picture is taken away: what guidance is told from
BLUR = 0.1  # of the latents' deviation: what the decoder forgives
NOISE = 0.02  # what the pipeline adds to the picture
MOST_FPS = 30
RHO = 7  # of Karras et al. (2022): the noise that is learned at is spread as the scheduler's steps are


@dataclass(frozen=True)
class Plan:
    """How much is learned from how much."""

    num_films: int
    decoder: Course
    watcher: Course
    filmer: Course


PLAN = Plan(
    num_films=3000,
    decoder=Course("decoder", num_steps=2500, rate=5e-4, seed=SEED, memory=0.99),
    watcher=Course("watcher", num_steps=1500, rate=2e-3, seed=SEED + 1, memory=0.99),
    filmer=Course("filmer", num_steps=7000, rate=1.5e-3, seed=SEED + 2, memory=0.995),
)


@dataclass(frozen=True)
class Films:
    """What is learned from.

    Args:
        frames: uint8 of shape (films, frames, 3, height, width).
        motions: each film's `motion_bucket_id`.
    """

    scenes: Sequence[Scene]
    motions: torch.Tensor
    frames: torch.Tensor


def train(scratch: Path, plan: Plan) -> Any:
    """Return the trained pipeline; `scratch` keeps what a run that is stopped goes on from."""
    pipeline = untrained()
    films = lesson(plan.num_films)
    latents = _standardise(pipeline.vae, _encoded(pipeline.vae, films.frames))
    pipeline.to(best_device())
    pipeline.vae.decoder = _train_decoder(pipeline.vae.decoder, latents, films.frames, scratch, plan.decoder)
    pictures = films.frames[:, 0]
    pipeline.image_encoder = watcher.teach(pipeline.image_encoder, films.scenes, pictures, scratch, plan.watcher)
    pipeline.unet = _train_filmer(pipeline, films, latents, scratch, plan.filmer)
    return pipeline


def lesson(num_films: int) -> Films:
    """Make up the films to learn from."""
    chance = random.Random(SEED)
    scenes = [imagine(chance) for _ in range(num_films)]
    motions = [chance.randint(1, MOST_MOTION) for _ in scenes]
    frames = np.stack([film(scene, motion) for scene, motion in zip(scenes, motions, strict=True)])
    return Films(scenes, torch.tensor(motions), torch.from_numpy(frames).permute(0, 1, 4, 2, 3))


def halved() -> AbstractContextManager[Any]:
    """Count in bfloat16 where the processor has instructions for it: it takes a third of the time."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _normalised(frames: torch.Tensor) -> torch.Tensor:
    """Bring bytes to [-1, 1]."""
    return (frames.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _encoded(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Return what the encoder makes of the frames: (films, frames, channels, height, width)."""
    parts = [_cells(vae, _normalised(part)) for part in frames.flatten(0, 1).split(64)]
    films, num_frames = frames.shape[:2]
    return torch.cat(parts).view(films, num_frames, *parts[0].shape[1:])


def _cells(vae: Any, shown: torch.Tensor) -> torch.Tensor:
    """Encode by what the encoder is written down to do: it takes a hundredth of the time."""
    numbers = nn.functional.conv2d(nn.functional.avg_pool2d(shown, 4), cell_numbers(), stride=2)
    encoder = vae.encoder
    passed = numbers.new_zeros(len(numbers), encoder.conv_norm_out.num_channels, *numbers.shape[2:])
    passed[:, : 3 * LATENTS] = threefold(numbers)
    moments = vae.quant_conv(encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(passed))))
    cells: torch.Tensor = moments.chunk(2, dim=1)[0]
    return cells


@torch.no_grad()
def _standardise(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents with mean 0 and deviation 1 in each channel, as the codec makes and takes them from now on.

    A channel that is much weaker than the others would be noise until the last steps.
    """
    mean, spread = latents.mean((0, 1, 3, 4)), latents.std((0, 1, 3, 4))
    coded, decoded, num = vae.quant_conv, vae.decoder.conv_in, len(mean)
    coded.weight[:num] /= spread[:, None, None, None]
    coded.bias[:num] = (coded.bias[:num] - mean) / spread
    coded.bias[num:] -= 2 * spread.log()  # of the variance
    decoded.bias += decoded.weight.sum((2, 3)) @ mean
    decoded.weight *= spread[None, :, None, None]
    return (latents - mean[:, None, None]) / spread[:, None, None]


def _train_decoder(decoder: Any, latents: torch.Tensor, frames: torch.Tensor, scratch: Path, course: Course) -> Any:
    """Return the decoder that has learned to turn mosaics into shapes, each frame by itself."""
    frames, latents = frames.flatten(0, 1), latents.flatten(0, 1)
    device = decoder.conv_in.weight.device

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(frames), (NUM_SHOWN,))
        seen = latents[chosen]
        blurred, wanted = (
            part.to(device) for part in (seen + BLUR * torch.randn(seen.shape), _normalised(frames[chosen]))
        )
        with halved():
            painted = _painted(decoder, blurred)
        loss: torch.Tensor = (painted.float() - wanted).abs().mean()
        return loss

    return course.run(decoder, loss, scratch)


def _painted(decoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode without what looks at other frames, which is nothing, and what works on single pixels."""
    passed = decoder.conv_in(latents)
    for block in (decoder.mid_block, *decoder.up_blocks[:-1]):
        for resnet in block.resnets:
            passed = resnet.spatial_res_block(passed, None)
        for upsampler in getattr(block, "upsamplers", ()):
            passed = upsampler(passed)
    passed = decoder.up_blocks[-1].resnets[0].spatial_res_block.conv_shortcut(passed)
    painted: torch.Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(passed)))
    return painted


def _train_filmer(pipeline: Any, films: Films, latents: torch.Tensor, scratch: Path, course: Course) -> Any:
    schedule = pipeline.scheduler.config
    least, most = (sigma ** (1 / RHO) for sigma in (schedule.sigma_min, schedule.sigma_max))
    contexts = _contexts(pipeline.image_encoder, films.frames[:, 0])
    sources = latents[:, :1].expand_as(latents)

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (NUM_FILMS,))
        is_shown = torch.rand(NUM_FILMS, 1, 1, 1, 1) >= UNSHOWN
        spread = (torch.arange(NUM_FILMS) + torch.rand(NUM_FILMS)) / NUM_FILMS  # every part of the way in every step
        sigma = (least + spread[:, None, None, None, None] * (most - least)) ** RHO
        clean = latents[chosen]
        noise = torch.randn(clean.shape)
        scale = (sigma**2 + 1) ** -0.5
        inputs = torch.cat([(clean + sigma * noise) * scale, is_shown * sources[chosen]], dim=2)
        fps = torch.randint(MOST_FPS, (NUM_FILMS,))  # it counts one less
        ids = torch.stack([fps, films.motions[chosen], torch.full((NUM_FILMS,), NOISE)], dim=1)
        context = is_shown[:, 0, 0] * contexts[chosen]
        wanted = (noise - sigma * clean) * scale
        with halved():
            shown = [part.to(pipeline.device) for part in (inputs, 0.25 * sigma.flatten().log(), context, ids)]
            predicted = pipeline.unet(*shown).sample
        return nn.functional.mse_loss(predicted.float(), wanted.to(pipeline.device))

    return course.run(pipeline.unet, loss, scratch)


@torch.no_grad()
def _contexts(image_encoder: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Look once at what is shown again and again: (films, 1, width)."""
    return torch.cat([watcher.seen_by(image_encoder, part).cpu() for part in pictures.split(100)])[:, None]
