"""A stretch of training that goes on where it was stopped; knows no model."""

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAVE_EVERY = 100  # steps
WARM_UP = 100  # steps
CLIP = 1.0


def best_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Course:
    """How long, how fast, and from which seed on.

    Every step draws its random numbers from a seed of its own: a run that was stopped goes on as it would have.
    """

    name: str
    num_steps: int
    rate: float  # at its highest; it falls to nothing, linearly
    seed: int
    memory: float = 0.999  # of the running average of the weights, which is what is kept
    weight_decay: float = 0.01

    def run(self, network: nn.Module, loss: Callable[[int], torch.Tensor], folder: Path) -> nn.Module:
        """Train `network` on the loss of each step's number, and return the average of what it went through."""
        learning = [weight for weight in network.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learning, self.rate, (0.9, 0.99), weight_decay=self.weight_decay, fused=True)
        average = copy.deepcopy(network)
        file = folder / f"{self.name}.pt"
        first = _resume(file, network=network, average=average, optimizer=optimizer)
        started, seen = time.perf_counter(), 0.0
        for step in range(first, self.num_steps):
            seen += self._take(step, network, optimizer, loss)
            _follow(average, network, min(self.memory, (step + 1) / (step + 10)))
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == self.num_steps:
                _save(file, step + 1, network=network, average=average, optimizer=optimizer)
                self._tell(step, seen, (time.perf_counter() - started) / (step + 1 - first))
                seen = 0.0
        return average.eval()

    def _tell(self, step: int, seen: float, seconds: float) -> None:
        mean = seen / (step % SAVE_EVERY + 1)
        sys.stdout.write(f"{self.name} {step + 1}/{self.num_steps} loss {mean:.4f} {seconds:.2f} s a step\n")
        sys.stdout.flush()

    def _take(
        self, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[int], torch.Tensor]
    ) -> float:
        for group in optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (step + 1) / WARM_UP) * (1 - step / self.num_steps)
        torch.manual_seed(self.seed * 1_000_003 + step)
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        return value.item()


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, memory: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - memory)


def _resume(file: Path, **parts: Any) -> int:
    """Bring the parts to where they were; return how many steps they have gone."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True, map_location="cpu")  # it may go on elsewhere
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _save(file: Path, step: int, **parts: Any) -> None:
    keep({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, file)


def keep(found: Any, file: Path) -> None:
    """Write what a run goes on from; whoever stops it meanwhile leaves no half of it."""
    partial = file.with_suffix(".partial")
    torch.save(found, partial)
    partial.replace(file)
