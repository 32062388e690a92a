"""An adapter (LoRA) for a network's linear layers; untrained it changes nothing."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

RANK = 4


class Adapted(nn.Module):
    """A linear layer, and what an adapter adds to it."""

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        """Begin with nothing."""
        super().__init__()
        self.layer, self.scale = layer, scale
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the layer says with the adapter."""
        added = states @ self.down.T @ self.up.T
        summed: torch.Tensor = self.layer(states) + self.scale * added
        return summed


class Adapter(nn.Module):
    """The adapter's own weights, by the names of the layers that they are for."""

    def __init__(self, network: Any, endings: tuple[str, ...], scale: float) -> None:
        """Put it into all layers with such names; the network's own weights are not trained any more."""
        super().__init__()
        network.requires_grad_(False)
        self.names: list[str] = []
        self.parts = nn.ParameterList()
        for name, layer in list(network.named_modules()):
            if name.endswith(endings):
                adapted = Adapted(layer, scale).to(layer.weight.device)
                network.set_submodule(name, adapted)
                self.names.append(name)
                self.parts += [adapted.down, adapted.up]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the two of each layer, by the names that peft has for them."""
        for place, name in enumerate(self.names):
            for half, part in zip("AB", self.parts[2 * place : 2 * place + 2], strict=True):
                yield f"{name}.lora_{half}.weight", part.detach().cpu().contiguous()
