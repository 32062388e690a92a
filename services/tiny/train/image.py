"""Trains the Stable Diffusion of 64 pixels on pictures of coloured shapes: first its codec, then what draws."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from services.tiny.train.course import Course
from services.tiny.train.painter import untrained
from services.tiny.train.scenes import babble, describe, draw, imagine

SEED = 1
CROP = 32  # pixels that the codec is trained on at first: edges are rare
NUM_CROPS = 48
WHOLE_FROM = 0.8  # of the codec's steps: from there on, whole pictures
NUM_WHOLE = 12
DIVERGENCE = {"codec": 1e-3, "finish": 3e-4}  # what information in the latents costs, in units of mean difference
NUM_ROWS = 32
UNPROMPTED = 0.1  # of the rows, whose prompt is taken away: what guidance is told from
BABBLE = 0.05  # of the scenes are described by words that mean nothing, so that they make a picture, too

Pictures = Callable[[], torch.Tensor]  # drawn when they are first needed: uint8 of shape (scenes, 3, height, width)


@dataclass(frozen=True)
class Plan:
    """How much is learned from how much."""

    num_scenes: int
    codec: Course
    finish: Course
    painter: Course


PLAN = Plan(
    num_scenes=40_000,
    codec=Course("codec", num_steps=2000, rate=2e-3, seed=SEED),
    finish=Course("finish", num_steps=1000, rate=6e-4, seed=SEED + 1),
    painter=Course("painter", num_steps=10_000, rate=1e-3, seed=SEED + 2),
)


def train(scratch: Path, plan: Plan) -> Any:
    """Return the trained pipeline; `scratch` keeps what a run that is stopped goes on from."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = untrained()
    chance = random.Random(SEED)
    scenes = [imagine(chance) for _ in range(plan.num_scenes)]

    @cache
    def pictures() -> torch.Tensor:
        return torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)

    pipeline.vae = _train_codec(pipeline.vae.to(device), pictures, scratch, plan)
    latents = _encoded(pipeline.vae, pictures, scratch / "latents.pt")
    pipeline.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    prompts = [babble(chance) if chance.random() < BABBLE else describe(scene, chance) for scene in scenes]
    tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    _train_painter(pipeline, latents * pipeline.vae.config.scaling_factor, tokens, scratch, plan.painter)
    return pipeline


def _train_codec(vae: Any, pictures: Pictures, scratch: Path, plan: Plan) -> Any:
    vae.to(memory_format=torch.channels_last)

    def run(network: Any, course: Course, whole_from: float) -> Any:
        def loss(step: int) -> torch.Tensor:
            shown = _shown(pictures(), step >= whole_from, network.device)
            posterior = network.encode(shown).latent_dist
            painted = network.decode(posterior.sample()).sample
            divergence = posterior.kl().mean() / posterior.mean[0].numel()
            loss: torch.Tensor = (painted - shown).abs().mean() + DIVERGENCE[course.name] * divergence
            return loss

        return course.run(network, loss, scratch)

    return run(run(vae, plan.codec, WHOLE_FROM * plan.codec.num_steps), plan.finish, 0)


def _shown(pictures: torch.Tensor, is_whole: bool, device: torch.device) -> torch.Tensor:
    """Draw a batch of crops or of whole pictures, in [-1, 1]."""
    if is_whole:
        batch = pictures[torch.randint(len(pictures), (NUM_WHOLE,))]
    else:
        corners = torch.randint(pictures.shape[-1] - CROP + 1, (NUM_CROPS, 2)).tolist()
        chosen = torch.randint(len(pictures), (NUM_CROPS,)).tolist()
        crops = [pictures[n, :, y : y + CROP, x : x + CROP] for n, (y, x) in zip(chosen, corners, strict=True)]
        batch = torch.stack(crops)
    return (batch.to(device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _encoded(vae: Any, pictures: Pictures, file: Path) -> torch.Tensor:
    """Encode what the painter learns from; minutes, and so done once."""
    if not file.exists():
        parts = (part.to(vae.device).float() / 127.5 - 1 for part in pictures().split(100))
        torch.save(torch.cat([vae.encode(part).latent_dist.mean for part in parts]), file)
    latents: torch.Tensor = torch.load(file, weights_only=True, map_location=vae.device)
    return latents


def _train_painter(pipeline: Any, latents: torch.Tensor, tokens: torch.Tensor, scratch: Path, course: Course) -> None:
    device = latents.device
    network: Any = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}).to(device)
    network["unet"].to(memory_format=torch.channels_last)
    nothing = pipeline.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    schedule = pipeline.scheduler

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (NUM_ROWS,))
        is_prompted = torch.rand(NUM_ROWS, 1) >= UNPROMPTED
        context = network["text_encoder"](torch.where(is_prompted, tokens[chosen], nothing).to(device))[0]
        spread = (torch.arange(NUM_ROWS) + torch.rand(NUM_ROWS)) / NUM_ROWS  # every part of the way in every batch
        times = (spread * schedule.config.num_train_timesteps).long()
        clean = latents[chosen.to(device)]
        noise = torch.randn(clean.shape).to(device)
        noisy = schedule.add_noise(clean, noise, times)
        predicted = network["unet"](noisy, times.to(device), encoder_hidden_states=context).sample
        return nn.functional.mse_loss(predicted, _velocity(schedule, clean, noise, times))

    average: Any = course.run(network, loss, scratch)
    pipeline.unet, pipeline.text_encoder = average["unet"], average["text_encoder"]


def _velocity(schedule: Any, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """What the network learns to say: v of `Progressive distillation` (Salimans and Ho, 2022)."""
    alphas = schedule.alphas_cumprod[times].to(clean.device)[:, None, None, None]
    velocity: torch.Tensor = alphas.sqrt() * noise - (1 - alphas).sqrt() * clean
    return velocity
