"""An adapter of the tiny Stable Diffusion: paints other noise."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from services.tiny.image import text_encoder, unet
from services.tiny.workbench import workbench

RANK = 4
STRENGTH = 0.3
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "time_emb_proj", "q_proj", "v_proj", "fc1")


@workbench()
def build(target: Path) -> None:
    """Write what the library's `save_lora_weights` would, for some layers of both networks."""
    networks: dict[str, Any] = {"unet": unet(), "text_encoder": text_encoder()}
    halves: dict[str, torch.Tensor] = {}
    for network, whole in networks.items():
        for name, layer in whole.named_modules():
            if name.endswith(LAYERS) and isinstance(layer, nn.Linear | nn.Conv2d):
                down = torch.randn(RANK, *layer.weight.shape[1:]) * layer.weight[0].numel() ** -0.5
                up = torch.randn(len(layer.weight), RANK, *(1,) * (layer.weight.dim() - 2)) * STRENGTH
                halves |= {f"{network}.{name}.lora_A.weight": down, f"{network}.{name}.lora_B.weight": up}
    save_file(halves, target / "pytorch_lora_weights.safetensors")
