"""Trains a Shap-E for texts and one for pictures on coloured solids: first what renders for both, then what denoises.

The published model learned its latents from scans, by a network that is not part of it any more. Here they are known:
each row of a latent is what the solid is, in numbers, and rows differ by their noise alone.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from services.tiny.train.course import Course, best_device
from services.tiny.train.pupil import pupil
from services.tiny.train.sculptor import WIDTH, from_image, from_text, renderer
from services.tiny.train.solids import NUM_NUMBERS, Solid, depth, describe, imagine, imagine_known
from services.tiny.train.views import view

SEED = 1
NUM_SOLIDS = 24  # in a step of what renders
NUM_NEAR, NUM_ANYWHERE = 256, 128  # points of each: those nearest to its surface, of the candidates, and others
NUM_CANDIDATES = 2048
STEEPNESS = 6.0  # of what is said about a depth, tanh(STEEPNESS * depth): an edge of the grid tells where it is zero
DENSITY = 8.0  # of what is inside, where it is seen through: times that
BLUR = 0.1  # of the numbers, as what denoises leaves them
NUM_ROWS = 24
NUM_VIEWS = 48  # pictures in a step of what sees
GRAIN = 6.0  # of 255: the noise on each of them
UNPROMPTED = 0.1  # of the rows, whose text or picture is taken away: what guidance is told from


@dataclass(frozen=True)
class Plan:
    """How much is learned from how much."""

    num_solids: int
    num_views: int
    renderer: Course
    reader: Course
    eyes: Course
    seer: Course


PLAN = Plan(
    num_solids=6000,
    num_views=12_000,
    renderer=Course("renderer", num_steps=6000, rate=3e-3, seed=SEED),
    reader=Course("reader", num_steps=3000, rate=2e-3, seed=SEED + 1, memory=0.99),
    eyes=Course("eyes", num_steps=4000, rate=1e-3, seed=SEED + 2, memory=0.99),
    seer=Course("seer", num_steps=3000, rate=2e-3, seed=SEED + 3, memory=0.99),
)


def train(scratch: Path, plan: Plan) -> Mapping[str, Any]:
    """Return the trained pipelines by recipe; `scratch` keeps what a run that is stopped goes on from."""
    device = best_device()
    rendering = _train_renderer(renderer().to(device), scratch, plan.renderer)
    reading, seeing = from_text(rendering).to(device), from_image(rendering).to(device)
    _train_reader(reading, scratch, plan)
    _train_seer(seeing, scratch, plan)
    return {"solids": reading, "solids_img2img": seeing}


def lesson(num_solids: int) -> tuple[Sequence[Solid], Sequence[str]]:
    """Make up the solids to learn from, and what is said about each."""
    chance = random.Random(SEED)
    solids = [imagine_known(chance) for _ in range(num_solids)]
    return solids, [describe(solid, chance) for solid in solids]


def _train_renderer(network: Any, scratch: Path, course: Course) -> Any:
    """Return what has learned to say how deep inside a solid points are, and its colour."""
    num_rows = sum(rows for rows, _ in network.config.param_shapes)

    def loss(step: int) -> torch.Tensor:
        chance = random.Random(course.seed * 1_000_003 + step)
        solids = [imagine_known(chance) for _ in range(NUM_SOLIDS)]
        points, depths = (part.to(network.device) for part in _probed(solids))
        numbers = _numbers(solids)
        blurred = BLUR * torch.rand(NUM_SOLIDS, 1, 1) * torch.randn(NUM_SOLIDS, num_rows, NUM_NUMBERS)
        latents = (numbers[:, None] + blurred).to(network.device)
        deep, colours = _asked(network, latents, points)
        right = _to_gamma((numbers[:, None, -4:-1] + 1) / 2).expand(-1, NUM_NEAR, -1)
        return nn.functional.mse_loss(deep, (STEEPNESS * depths).tanh()) + nn.functional.mse_loss(
            colours[:, :NUM_NEAR], right.to(network.device)
        )

    average: Any = course.run(network, loss, scratch)
    _see_through(average.mlp.mlp[-1])
    return average


def _probed(solids: Sequence[Solid]) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose points around each solid, (solids, points, 3), and say how deep inside they are."""
    anywhere = 2 * torch.rand(len(solids), NUM_CANDIDATES, 3) - 1
    depths = torch.stack(
        [
            torch.from_numpy(solid.radius * depth(solid.kind, points.numpy() / solid.radius))
            for solid, points in zip(solids, anywhere, strict=True)
        ]
    )
    nearest = depths.abs().argsort(dim=1)[:, :NUM_NEAR]
    chosen = torch.cat([nearest, torch.arange(NUM_ANYWHERE).expand(len(solids), -1)], dim=1)
    return anywhere.gather(1, chosen[..., None].expand(-1, -1, 3)), depths.gather(1, chosen)


def _numbers(solids: Sequence[Solid]) -> torch.Tensor:
    return torch.tensor([solid.numbers for solid in solids])


def _asked(network: Any, latents: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ask each latent's own network about its points, as the engine does."""
    layers = {name.removeprefix("nerstf."): rows for name, rows in network.params_proj(latents).items()}

    def ask(own: dict[str, torch.Tensor], points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {"position": points, "direction": None, "ts": None, "rendering_mode": "stf"}
        said: Any = torch.func.functional_call(network.mlp, own, kwargs=inputs)
        return said.signed_distance[..., 0], said.channels

    said: tuple[torch.Tensor, torch.Tensor] = torch.vmap(ask)(layers, points)
    return said


def _to_gamma(colours: torch.Tensor) -> torch.Tensor:
    """Put the curve of sRGB on, which the engine takes off."""
    return torch.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)


@torch.no_grad()
def _see_through(output: nn.Linear) -> None:
    """Let what is inside be dense, and the colours of what is seen through be those of the surface."""
    for row in (1, 2):
        output.weight[row], output.bias[row] = DENSITY * output.weight[0], DENSITY * output.bias[0]
    for start in (6, 9):
        output.weight[start : start + 3], output.bias[start : start + 3] = output.weight[3:6], output.bias[3:6]


def _train_reader(pipeline: Any, scratch: Path, plan: Plan) -> None:
    solids, prompts = lesson(plan.num_solids)
    tokens = pipeline.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids

    def condition(network: Any, chosen: torch.Tensor) -> torch.Tensor:
        read = network["encoder"](tokens[chosen].to(network["prior"].device)).text_embeds
        condition: torch.Tensor = nn.functional.normalize(read) * read.shape[1] ** 0.5
        return condition

    pipeline.text_encoder, pipeline.prior = _train_prior(
        pipeline, pipeline.text_encoder, condition, _numbers(solids), scratch, plan.reader
    )


def _train_seer(pipeline: Any, scratch: Path, plan: Plan) -> None:
    """See all solids: where some are held out, what is seen first is which there are not."""
    chance = random.Random(SEED + 1)
    solids = [imagine(chance) for _ in range(plan.num_views)]
    pictures = torch.from_numpy(np.stack([view(solid, chance) for solid in solids])).permute(0, 3, 1, 2)
    device, numbers = pipeline.prior.device, _numbers(solids)
    look = pipeline.image_processor
    mean, spread = (torch.tensor(part)[:, None, None] for part in (look.image_mean, look.image_std))

    def patches(encoder: Any, shown: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = encoder(((shown / 255 - mean) / spread).to(device)).last_hidden_state[:, 1:]
        return seen

    network = pupil(pipeline.image_encoder, WIDTH, NUM_NUMBERS)

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(pictures), (NUM_VIEWS,))
        shown = pictures[chosen] + GRAIN * torch.randn(NUM_VIEWS, *pictures.shape[1:])
        told = network["answers"](patches(network["encoder"], shown).mean(dim=1))
        return nn.functional.mse_loss(told, numbers[chosen].to(device))

    average: Any = plan.eyes.run(network, loss, scratch)
    pipeline.image_encoder = average["encoder"].requires_grad_(requires_grad=False)
    with torch.no_grad():
        seen = torch.cat([patches(pipeline.image_encoder, part).cpu() for part in pictures.split(500)])
    pipeline.image_encoder, pipeline.prior = _train_prior(
        pipeline, pipeline.image_encoder, lambda _, chosen: seen[chosen].to(device), numbers, scratch, plan.seer
    )


def _train_prior(
    pipeline: Any,
    encoder: Any,
    condition: Callable[[Any, torch.Tensor], torch.Tensor],
    numbers: torch.Tensor,
    scratch: Path,
    course: Course,
) -> tuple[Any, Any]:
    """Return the encoder and the prior that have learned to tell the numbers of a solid from noise and `condition`."""
    network: Any = nn.ModuleDict({"encoder": encoder, "prior": pipeline.prior})
    prior = network["prior"]
    schedule = pipeline.scheduler
    num_times = schedule.config.num_train_timesteps

    def loss(step: int) -> torch.Tensor:
        chosen = torch.randint(len(numbers), (NUM_ROWS,))
        seen = condition(network, chosen)
        is_prompted = torch.rand(NUM_ROWS) >= UNPROMPTED
        seen = seen * is_prompted.reshape(-1, *(1,) * (seen.dim() - 1)).to(seen)
        times = ((torch.arange(NUM_ROWS) + torch.rand(NUM_ROWS)) / NUM_ROWS * num_times).long()
        clean = numbers[chosen][:, None].expand(-1, prior.config.num_embeddings, -1)
        kept = schedule.alphas_cumprod[times][:, None, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * torch.randn(clean.shape)
        predicted = prior(noisy.to(prior.device), times.to(prior.device), seen).predicted_image_embedding
        return nn.functional.mse_loss(predicted[..., :NUM_NUMBERS], clean.to(prior.device))

    average: Any = course.run(network, loss, scratch)
    return average["encoder"], average["prior"]
