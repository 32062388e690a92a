"""A random Llama of TinyLlama's shape, and prompts for it; knows nobody who serves it."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.checkpoints import BENCH

FOLDER = BENCH / "llama" / "tiny" / "text"  # where a worker looks for the tiny one
VOCABULARY = 32_000
RANK = 16  # of an adapter
SHAPE: Mapping[str, int] = MappingProxyType(
    {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "vocab_size": VOCABULARY,
    }
)
CALLERS_LENGTHS = (20, 40, 30, 64, 22, 50, 33, 70)  # tokens of prompts


@dataclass(frozen=True)
class Prompt:
    """A text and its tokens."""

    text: str
    tokens: tuple[int, ...]


def data_dir() -> Path:
    """What `ATELIER_DATA_DIR` says to a worker that shall serve it."""
    return FOLDER.parents[1]


def build() -> Path:
    """Return its folder, written if it is missing or stale: bfloat16, 2.2 GB."""
    from services.tiny.build import stamp
    from services.tiny.folder import fill

    return fill(FOLDER, stamp("text"), _write)


def adapter(name: str) -> Path:
    """Return the folder of a random adapter for it, written if it is missing: of rank 16, to all layers inside."""
    from services.tiny.build import stamp
    from services.tiny.folder import fill

    return fill(FOLDER.parents[2] / f"adapter-{name}", stamp("text_lora"), _write_adapter)


def _write_adapter(target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    width, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    keys = width // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qo"}
    shapes |= {f"self_attn.{name}_proj": (keys, width) for name in "kv"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    weights = {}
    for layer in range(SHAPE["num_hidden_layers"]):
        for name, (outputs, inputs) in shapes.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(RANK, inputs) / inputs**0.5
            weights[f"{key}.lora_B.weight"] = torch.randn(outputs, RANK) / 100
    save_file(weights, target / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    (target / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")


def _write(target: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=tokenizer.bos_token_id, eos_token_id=None))
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)  # nothing ends a text early
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tokenizer() -> Any:
    """Return the tiny model's, with a word for every other token."""
    from services.tiny.vocabulary import chat_tokenizer

    tokenizer = chat_tokenizer()
    tokenizer.add_tokens([word(token) for token in range(len(tokenizer), VOCABULARY)])
    return tokenizer


def word(token: int) -> str:
    """What a token of no meaning is written as."""
    return f"<{token}>"


def prompts(number: int, lengths: tuple[int, ...] = CALLERS_LENGTHS, seed: int = 0) -> list[Prompt]:
    """Return prompts that have nothing in common; the first token begins every text."""
    dice = random.Random(seed)
    made = []
    for index in range(number):
        tokens = tuple(dice.randrange(1000, VOCABULARY) for _ in range(lengths[index % len(lengths)] - 1))
        made.append(Prompt("".join(map(word, tokens)), (1, *tokens)))
    return made
