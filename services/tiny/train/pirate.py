"""An adapter (LoRA) for the Llama that chats, as the library peft writes one; untrained it changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from services.tiny.train.chatter import untrained
from services.tiny.workbench import workbench

RANK, ALPHA = 4, 8
LAYERS = ("q_proj", "v_proj", "down_proj")


class Adapted(nn.Module):
    """A linear layer, and what an adapter adds to it."""

    def __init__(self, layer: nn.Linear) -> None:
        """Begin with nothing."""
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the layer says with the adapter."""
        added = states @ self.down.T @ self.up.T
        summed: torch.Tensor = self.layer(states) + ALPHA / RANK * added
        return summed


class Pirate(nn.Module):
    """The adapter's own weights, by the names of the layers that they are for."""

    def __init__(self, network: Any) -> None:
        """Put it into the network, whose own weights are not trained any more."""
        super().__init__()
        network.requires_grad_(False)
        self.names: list[str] = []
        self.parts = nn.ParameterList()
        for name, layer in list(network.named_modules()):
            if name.endswith(LAYERS):
                adapted = Adapted(layer).to(layer.weight.device)
                network.set_submodule(name, adapted)
                self.names.append(name)
                self.parts += [adapted.down, adapted.up]

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights into the folder."""
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": ALPHA,
            "target_modules": sorted(LAYERS),
            "bias": "none",
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(dict(self._tensors()), folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for place, name in enumerate(self.names):
            for half, part in zip("AB", self.parts[2 * place : 2 * place + 2], strict=True):
                yield f"base_model.model.{name}.lora_{half}.weight", part.detach().cpu().contiguous()


@workbench()
def build(target: Path) -> None:
    """Write one that changes nothing into the folder."""
    Pirate(untrained().network).save_pretrained(target)
