"""Adapters of low rank (LoRA) in memory, added row by row while a network runs; its own weights stay as they are.

A layer makes W·x, and an adapter adds up·(down·x) to it. Rows without one are exactly what the network makes.
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from services.engine.lora_file import flat, read
from services.errors import ModelUnavailable

Layer = nn.Linear | nn.Conv2d


class Adapters:
    """A model's adapters, of which every row of a forward may have another."""

    def __init__(self, networks: Mapping[str, nn.Module], device: torch.device, dtype: torch.dtype) -> None:
        """Add nothing yet to what the networks make, which have the names that files have for them."""
        self.rows: Mapping[str, torch.Tensor] = {}  # by adapter
        self._networks = networks
        self._device, self._dtype = device, dtype
        self._additions: dict[Layer, Addition] = {}

    def load(self, name: str, folder: Path, scale: float) -> None:
        """Read an adapter, to be added `scale` times.

        Raises:
            ModelUnavailable: it is none, or one of another model.
        """
        try:
            self._load(name, folder, scale)
        except (OSError, SafetensorError, ValueError) as error:
            raise ModelUnavailable(f"adapter '{name}' cannot be added to this model: {error}") from error

    @contextmanager
    def added(self, names: Sequence[str | None]) -> Iterator[None]:
        """Give each row of the forwards in this block the adapter of that name."""
        places: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                places.setdefault(name, []).append(row)
        self.rows = {name: torch.tensor(rows, device=self._device) for name, rows in places.items()}
        try:
            yield
        finally:
            self.rows = {}

    def _load(self, name: str, folder: Path, scale: float) -> None:
        contents = read(folder)
        layers = {
            (network, flat(layer)): (layer, module)
            for network, whole in self._networks.items()
            for layer, module in whole.named_modules()
            if isinstance(module, Layer)
        }
        for (network, wanted), pair in contents.pairs.items():
            found = layers.get((network, wanted)) or layers.get((network, f"{wanted}_0"))  # as `to_out` was before
            if found is None or not fits(found[1], pair.down, pair.up):
                raise ValueError(f"it is for a {network} whose {wanted} is another")
            layer, module = found
            up = pair.up.float() * (scale * contents.scale(network, layer, pair))
            self._addition(module).pairs[name] = tuple(half.to(self._device, self._dtype) for half in (pair.down, up))

    def _addition(self, layer: Layer) -> "Addition":
        if layer not in self._additions:
            self._additions[layer] = Addition(self)
            layer.register_forward_hook(self._additions[layer])
        return self._additions[layer]


class Addition:
    """A layer's forward hook: adds to each row what its adapter has for this layer."""

    def __init__(self, adapters: Adapters) -> None:
        """Add what is chosen of `adapters`."""
        self._adapters = adapters
        self.pairs: dict[str, tuple[torch.Tensor, ...]] = {}  # down and up, by adapter

    def __call__(self, layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Add it to `output`."""
        for name, rows in self._adapters.rows.items():
            if name in self.pairs:
                output[rows] += product(layer, inputs[0][rows], *self.pairs[name])
        return output


def fits(layer: Layer, down: torch.Tensor, up: torch.Tensor) -> bool:
    """Whether their product can be added to what `layer` makes."""
    inputs, outputs = tuple(down.shape[1:]), tuple(up.shape)
    if isinstance(layer, nn.Conv2d):
        own = layer.in_channels, *layer.kernel_size
        return inputs == own and outputs == (layer.out_channels, len(down), 1, 1) and layer.groups == 1
    return (
        isinstance(layer, nn.Linear) and inputs == (layer.in_features,) and outputs == (layer.out_features, len(down))
    )


def product(layer: Layer, inputs: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return up·(down·inputs), as `layer` goes over its inputs."""
    if not isinstance(layer, nn.Conv2d):
        return nn.functional.linear(nn.functional.linear(inputs, down), up)
    inner = nn.functional.conv2d(inputs, down, None, layer.stride, layer.padding, layer.dilation)
    return nn.functional.conv2d(inner, up)
