"""An adapter (LoRA) for the tiny Llama, as the library peft writes one; it changes what the model says."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.tiny.text import INTERMEDIATE, KEYS, LAYERS, WIDTH
from services.tiny.workbench import workbench

RANK, ALPHA = 4, 8
SHAPES = {  # outputs and inputs of the layers that it changes
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "mlp.gate_proj": (INTERMEDIATE, WIDTH),
    "mlp.down_proj": (WIDTH, INTERMEDIATE),
}


@workbench()
def build(target: Path) -> None:
    """Write configuration and weights into the folder."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted(name.rpartition(".")[2] for name in SHAPES),
        "bias": "none",
    }
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = {}
    for layer in range(LAYERS):
        for name, (new_width, width) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(RANK, width) * width**-0.5
            weights[f"{key}.lora_B.weight"] = torch.randn(new_width, RANK) * 0.5
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
