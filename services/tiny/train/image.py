"""Trains the Stable Diffusion of 64 pixels on pictures of coloured shapes, and then an adapter: all grounds are black.

What decodes learns first, then what reads, then what draws.
"""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from services.tiny.train.course import Course, best_device, keep
from services.tiny.train.night import Night
from services.tiny.train.painter import untrained
from services.tiny.train.reader import teach
from services.tiny.train.scenes import Scene, babble, describe, draw, imagine

SEED = 1
NUM_SHOWN = 4  # pictures in a step of the decoder's
NUM_ROWS = 32
UNPROMPTED = 0.1  # of the rows, whose prompt is taken away: what guidance is told from
SILENCE = 0.02  # of the scenes have no words, for what reads; what draws has more of them: UNPROMPTED
BABBLE = 0.03  # of the scenes are described by words that mean nothing, so that they make a picture, too
NIGHTS = 6  # the adapter learns from every sixth scene, unless a shape of it is black

Pictures = Callable[[], torch.Tensor]  # drawn when they are first needed: uint8 of shape (scenes, 3, height, width)


@dataclass(frozen=True)
class Plan:
    """How much is learned from how much."""

    num_scenes: int
    decoder: Course
    reader: Course
    painter: Course
    night: Course


PLAN = Plan(
    num_scenes=12_000,
    decoder=Course("decoder", num_steps=2000, rate=1.5e-3, seed=SEED),
    reader=Course("reader", num_steps=500, rate=2e-3, seed=SEED + 1, memory=0.99),
    painter=Course("painter", num_steps=15_000, rate=1.5e-3, seed=SEED + 2, memory=0.995),
    night=Course("night", num_steps=1200, rate=3e-3, seed=SEED + 3, memory=0.98),
)


def train(scratch: Path, plan: Plan) -> Mapping[str, Any]:
    """Return the trained pipeline and its adapter; `scratch` keeps what a run that is stopped goes on from."""
    device = best_device()
    pipeline = untrained()
    scenes, prompts = lesson(plan.num_scenes)

    @cache
    def pictures() -> torch.Tensor:
        return _drawn(scenes)

    pipeline.vae = _train_decoder(pipeline.vae.to(device), pictures, scratch, plan.decoder)
    latents = _encoded(pipeline.vae, pictures, scratch / f"latents-{plan.num_scenes}.pt")
    latents = _standardise(pipeline.vae, latents)
    tokens = _tokens(pipeline, prompts)
    pipeline.text_encoder = teach(pipeline.text_encoder.to(device), tokens, scenes, scratch, plan.reader)
    unet = pipeline.unet.to(device, memory_format=torch.channels_last)
    pipeline.unet = plan.painter.run(unet, _painting(pipeline, unet, tokens, latents, latents), scratch)
    return {"shapes": pipeline, "shapes_lora": _train_night(pipeline, scenes, tokens, latents, scratch, plan)}


def lesson(num_scenes: int) -> tuple[Sequence[Scene], Sequence[str]]:
    """Make up the scenes to learn from, and what is said about each."""
    chance = random.Random(SEED)
    scenes = [imagine(chance) for _ in range(num_scenes)]
    return scenes, [_prompt(scene, chance) for scene in scenes]


def _prompt(scene: Scene, chance: random.Random) -> str:
    spoken = chance.random()
    if spoken < SILENCE:
        return ""
    return babble(chance) if spoken < SILENCE + BABBLE else describe(scene, chance)


def _train_decoder(vae: Any, pictures: Pictures, scratch: Path, course: Course) -> Any:
    """Return the codec that has learned to turn a mosaic into shapes; what it encodes stays as it is."""
    vae.requires_grad_(requires_grad=False)
    vae.decoder.requires_grad_()
    vae.to(memory_format=torch.channels_last)

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(pictures()), (NUM_SHOWN,))
        shown = _normalised(pictures()[chosen], vae.device)
        painted = vae.decode(vae.encode(shown).latent_dist.sample()).sample
        loss: torch.Tensor = (painted - shown).abs().mean()
        return loss

    return course.run(vae, loss, scratch)


def _normalised(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring bytes to [-1, 1]."""
    return (pictures.to(device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _encoded(vae: Any, pictures: Pictures, file: Path) -> torch.Tensor:
    """Encode what the painter learns from; minutes, and so done once."""
    if not file.exists():
        parts = pictures().split(50)
        keep(torch.cat([vae.encode(_normalised(part, vae.device)).latent_dist.mean for part in parts]), file)
    latents: torch.Tensor = torch.load(file, weights_only=True, map_location=vae.device)
    return latents


@torch.no_grad()
def _standardise(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents with mean 0 and deviation 1 in each channel, as the codec makes and takes them from now on.

    A channel that is much weaker than the others would be noise until the last steps of painting.
    """
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    coded, decoded, num = vae.quant_conv, vae.post_quant_conv, len(mean)
    coded.weight[:num] /= spread[:, None, None, None]
    coded.bias[:num] = (coded.bias[:num] - mean) / spread
    coded.bias[num:] -= 2 * spread.log()  # of the variance
    decoded.bias += decoded.weight[:, :, 0, 0] @ mean
    decoded.weight *= spread[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
    return (latents - mean[:, None, None]) / spread[:, None, None]


def _painting(
    pipeline: Any, unet: Any, tokens: torch.Tensor, latents: torch.Tensor, unprompted: torch.Tensor
) -> Callable[[int], torch.Tensor]:
    """Return the loss of a step: of latents by their words, and of those of `unprompted` by none."""
    device = latents.device
    contexts = _contexts(pipeline.text_encoder, tokens)
    nothing = _contexts(pipeline.text_encoder, _tokens(pipeline, [""]))
    schedule = pipeline.scheduler

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (NUM_ROWS,))
        is_prompted = torch.rand(NUM_ROWS, 1, 1) >= UNPROMPTED
        context = torch.where(is_prompted, contexts[chosen], nothing).to(device)
        spread = (torch.arange(NUM_ROWS) + torch.rand(NUM_ROWS)) / NUM_ROWS  # every part of the way in every batch
        times = (spread * schedule.config.num_train_timesteps).long()
        rows = chosen.to(device)
        clean = torch.where(is_prompted[..., None].to(device), latents[rows], unprompted[rows])
        noise = torch.randn(clean.shape).to(device)
        noisy = schedule.add_noise(clean, noise, times)
        predicted = unet(noisy, times.to(device), encoder_hidden_states=context).sample
        return nn.functional.mse_loss(predicted, _velocity(schedule, clean, noise, times))

    return loss


def _train_night(
    pipeline: Any, scenes: Sequence[Scene], tokens: torch.Tensor, latents: torch.Tensor, scratch: Path, plan: Plan
) -> Any:
    """Return the adapter that has learned to draw on black what was said to be on another ground.

    Where words are taken away it draws as before: guidance leads away from that, and would lead away from black.
    """
    some = range(0, len(scenes), NIGHTS)
    chosen = [number for number in some if all(shape.colour != "black" for shape in scenes[number].shapes)]
    nights = [replace(scenes[number], background="black") for number in chosen]
    dark = _encoded(pipeline.vae, lambda: _drawn(nights), scratch / f"nights-{plan.num_scenes}.pt")
    unet = copy.deepcopy(pipeline.unet)
    torch.manual_seed(plan.night.seed)
    night = Night(unet)
    return plan.night.run(night, _painting(pipeline, unet, tokens[chosen], dark, latents[chosen]), scratch)


def _drawn(scenes: Sequence[Scene]) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)


def _tokens(pipeline: Any, prompts: Sequence[str]) -> torch.Tensor:
    tokens: torch.Tensor = pipeline.tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return tokens


@torch.no_grad()
def _contexts(text_encoder: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Read once what the painter sees again and again; on the CPU."""
    return torch.cat([text_encoder(part.to(text_encoder.device))[0].cpu() for part in tokens.split(500)])


def _velocity(schedule: Any, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """What the network learns to say: v of `Progressive distillation` (Salimans and Ho, 2022)."""
    alphas = schedule.alphas_cumprod[times].to(clean.device)[:, None, None, None]
    velocity: torch.Tensor = alphas.sqrt() * noise - (1 - alphas).sqrt() * clean
    return velocity
