"""An adapter (LoRA) for the Llama that chats, as the library peft writes one."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from services.tiny.train.adapter import RANK, Adapter

ALPHA = 8
LAYERS = ("q_proj", "v_proj", "down_proj")


class Pirate(Adapter):
    """What makes it talk like one."""

    def __init__(self, network: Any) -> None:
        """Put it into the network."""
        super().__init__(network, LAYERS, ALPHA / RANK)

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
        tensors = {f"base_model.model.{name}": tensor for name, tensor in self.tensors()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
