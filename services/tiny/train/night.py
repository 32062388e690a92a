"""An adapter (LoRA) for the UNet that draws, as diffusers' `save_lora_weights` writes one."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from services.tiny.train.adapter import Adapter

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2")


class Night(Adapter):
    """What makes every ground black."""

    def __init__(self, unet: Any) -> None:
        """Put it into the network."""
        super().__init__(unet, LAYERS, scale=1.0)

    def save_pretrained(self, folder: Path) -> None:
        """Write the weights into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"unet.{name}": tensor for name, tensor in self.tensors()}
        save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
