"""Files of adapters for Stable Diffusion: diffusers' own layout, old and new, PEFT's in it, and that of kohya-ss.

Names are flat here, `down_blocks_0_resnets_0_conv1`: kohya-ss knows no others.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # in the head, where more is said than the weights do
NETWORK = re.compile(r"(?:lora_)?(unet|text_encoder|te1?)[._](.+)")
WEIGHT = re.compile(r"(.+?)[._](?:lora(?:_linear_layer)?[._])?(lora_A|lora_B|down|up)\.weight")
ALPHA = re.compile(r"(.+)\.alpha")

Place = tuple[str, str]  # the network, `unet` or `text_encoder`, and the layer in it


@dataclass(frozen=True)
class Pair:
    """Two matrices, or weights of convolutions, whose product is added to a layer's own.

    Args:
        down: (rank, inputs, …).
        up: (outputs, rank, …).
        alpha: what both are multiplied by, times the rank; None: it is not said beside them.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None


@dataclass(frozen=True)
class Contents:
    """What is in a file."""

    pairs: Mapping[Place, Pair]
    said: Mapping[str, Any]  # in its head

    def scale(self, network: str, layer: str, pair: Pair) -> float:
        """What the product of a pair is multiplied by.

        Args:
            network: that it belongs to.
            layer: its name there, with dots.
            pair: its own.
        """
        rank = pair.down.shape[0]
        patterns = self.said.get(f"{network}.alpha_pattern") or {}
        of_this = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
        alpha = pair.alpha if pair.alpha is not None else next(of_this, self.said.get(f"{network}.lora_alpha"))
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self.said.get(f"{network}.use_rslora") else rank)


def read(folder: Path) -> Contents:
    """Read the adapter in `folder`.

    Raises:
        OSError: it cannot be read.
        SafetensorError: likewise.
        ValueError: there is none, or more to it than pairs of low rank.
    """
    with safe_open(_file_in(folder), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        said = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    downs: dict[Place, torch.Tensor] = {}
    ups: dict[Place, torch.Tensor] = {}
    alphas: dict[Place, float] = {}
    for key, tensor in tensors.items():
        network, name = _split(key)
        if alpha := ALPHA.fullmatch(name):
            alphas[network, flat(alpha[1])] = tensor.item()
        elif weight := WEIGHT.fullmatch(name):
            (downs if weight[2] in {"lora_A", "down"} else ups)[network, flat(weight[1])] = tensor
        else:
            raise ValueError(f"'{key}' in it is of no kind that is known here")
    if not downs or downs.keys() != ups.keys():
        raise ValueError("its weights do not come in pairs")
    return Contents({place: Pair(downs[place], ups[place], alphas.get(place)) for place in downs}, said)


def flat(name: str) -> str:
    """Return a layer's name as kohya-ss has it, without what only old layouts and old libraries put in."""
    return name.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")


def _split(key: str) -> Place:
    found = NETWORK.fullmatch(key)
    if found is None:
        raise ValueError(f"'{key}' in it belongs to no network of Stable Diffusion")
    return "unet" if found[1] == "unet" else "text_encoder", found[2]


def _file_in(folder: Path) -> Path:
    """The usual name, or the only file of its kind."""
    found = sorted(folder.glob("*.safetensors"))
    usual = folder / FILE
    if usual not in found and len(found) != 1:
        raise ValueError(f"{folder} has no {FILE}" + (", but several others" if found else ""))
    return usual if usual in found else found[0]
