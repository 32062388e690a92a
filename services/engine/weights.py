"""A model's weights: a checkpoint built here, the operator's, or the hub's at a pinned revision; all are a folder."""

import gc
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch

from services.engine import memory
from services.engine.hub import fetch
from services.engine.placement import choose_placement
from services.registry import HubSource, Model
from services.settings import Settings
from services.tiny.build import ensure

OTHERS = (type, ModuleType, FunctionType, BuiltinFunctionType)  # what leads from a model to all the rest


@dataclass(frozen=True)
class Weights:
    """A folder in `save_pretrained` layout, how `from_pretrained` reads it, and where the model goes."""

    folder: Path
    arguments: dict[str, Any]
    device: torch.device
    dtype: torch.dtype


def open_weights(model: Model, settings: Settings) -> Weights:
    """Bring the weights of `model` onto this machine: build the tiny checkpoint or download the real one.

    Raises:
        ModelUnavailable: the files cannot be had, or the device cannot be used.
    """
    memory.set_libraries_aside()
    source = model.source
    placement = choose_placement(settings.device, settings.dtype, source.dtype)
    if model.tiny is not None and settings.profile == "tiny":
        folder = ensure(model.tiny.recipe, settings.data_dir / "tiny")
        return Weights(folder, {"use_safetensors": True}, placement.device, placement.dtype)
    arguments: dict[str, Any] = {"use_safetensors": True if source.safetensors else None}
    if source.variant is not None:
        arguments["variant"] = source.variant
    folder = fetch(model.id, source) if isinstance(source, HubSource) else source.path
    return Weights(folder, arguments, placement.device, placement.dtype)


def weigh(stepper: object) -> int:
    """Return how many bytes the tensors take that a loaded model holds, wherever it keeps them.

    What a library has packed cannot be looked into, and is not counted.
    """
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    found = [stepper]
    while found:
        each = found.pop()
        if id(each) in seen or isinstance(each, OTHERS):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor) and each.layout is torch.strided:
            storage = each.untyped_storage()  # several tensors may share one
            sizes[storage.data_ptr()] = storage.nbytes()
        else:
            found.extend(gc.get_referents(each))
    return sum(sizes.values())


def load_pipeline(model: Model, settings: Settings) -> Any:
    """Load a diffusers pipeline of whatever class its `model_index.json` names."""
    from diffusers import DiffusionPipeline  # text and speech do without it

    weights = open_weights(model, settings)
    pipeline = DiffusionPipeline.from_pretrained(weights.folder, dtype=weights.dtype, **weights.arguments)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(weights.device)  # `device=` above would be ignored in silence
