"""Weights in eight bits, made floating-point again where they are used: less memory, on any device."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

KINDS = nn.Linear, nn.Conv2d, nn.Conv3d
MOST = 127


class EightBits(nn.Module):
    """Weights as whole numbers from -127 to 127, and a scale for each output channel."""

    def forward(self, whole: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the weights."""
        return whole.to(scale.dtype) * scale

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `weight` as whole numbers, and the scale; it is rounded first, so that they are meant for it."""
        largest = weight.float().abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
        scale = (largest / MOST).clamp(min=torch.finfo(weight.dtype).tiny).to(weight.dtype)
        whole = (weight.float() / scale.float()).round().clamp(-MOST, MOST)
        return whole.to(torch.int8), scale


def quantise(networks: Iterable[nn.Module]) -> None:
    """Keep the weights of all linear layers and convolutions in eight bits; they remain what they are to a caller."""
    for network in networks:
        network.requires_grad_(False)  # whole numbers have no gradients
        for layer in list(network.modules()):
            if isinstance(layer, KINDS):
                parametrize.register_parametrization(layer, "weight", EightBits(), unsafe=True)
