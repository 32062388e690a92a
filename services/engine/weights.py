"""A model's weights: a checkpoint built here, the operator's, or the hub's at a pinned revision; all are a folder."""

import gc
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch

from services.engine import memory
from services.engine.checkpoints import Kind, check
from services.engine.failures import check_is_complete
from services.engine.hub import fetch
from services.engine.placement import choose_placement
from services.engine.progress import Progress, listener
from services.engine.quantising import quantise
from services.registry import HubSource, Model
from services.settings import Settings
from services.tiny.build import ensure

QUANTISED = {"unet", "transformer", "prior", "text_encoder", "image_encoder"}  # denoisers, and what they attend to
OTHERS = (type, ModuleType, FunctionType, BuiltinFunctionType)  # what leads from a model to all the rest


@dataclass(frozen=True)
class Weights:
    """A folder in `save_pretrained` layout, how `from_pretrained` reads it, and where the model goes."""

    folder: Path
    arguments: dict[str, Any]
    device: torch.device
    dtype: torch.dtype


def open_weights(model: Model, settings: Settings, kind: Kind | None = None) -> Weights:
    """Bring the weights of `model` onto this machine: build the tiny checkpoint or download the real one.

    Args:
        model: which one.
        settings: of the worker.
        kind: what its checkpoint is to be of; None: whatever it is.

    Raises:
        ModelUnavailable: the files cannot be had, or the device cannot be used.
        Unfit: they are not what is wanted, or plainly lack something.
    """
    memory.set_libraries_aside()
    source = model.source
    placement = choose_placement(settings.device, model.dtype or settings.dtype, source.dtype)
    arguments: dict[str, Any] = {"use_safetensors": True if wants_safetensors(model, settings) else None}
    if source.variant is not None and not model.is_tiny_in(settings.profile):
        arguments["variant"] = source.variant
    folder = find_folder(model, settings)
    check(folder, kind)
    listener.get()(Progress("reading"))
    return Weights(folder, arguments, placement.device, placement.dtype)


def find_folder(model: Model, settings: Settings, *, checks_all: bool = False) -> Path:
    """Bring the files of `model` onto this machine, and return where they are.

    Raises:
        ModelUnavailable: they cannot be had, or are not what the hub says they are.
    """
    tell = listener.get()
    if model.tiny is not None and settings.profile == "tiny":
        tell(Progress("building"))
        return ensure(model.tiny.recipe, settings.data_dir / "tiny")
    if isinstance(model.source, HubSource):

        def tell_of_bytes(here: int, total: int) -> None:
            tell(Progress("downloading", here, total))

        return fetch(model.id, model.source, tell_of_bytes, checks_all=checks_all)
    return model.source.path


def wants_safetensors(model: Model, settings: Settings) -> bool:
    """Whether pickles are passed over."""
    return model.is_tiny_in(settings.profile) or model.source.safetensors


def weigh(stepper: object) -> int:
    """Return how many bytes the tensors take that a loaded model holds, wherever it keeps them.

    What a library has packed cannot be looked into: the network that has packed it says what it takes, in
    `num_packed_bytes`.
    """
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    found = [stepper]
    while found:
        each = found.pop()
        if id(each) in seen or isinstance(each, OTHERS):
            continue
        seen.add(id(each))
        if isinstance(each, torch.nn.Module):
            sizes[id(each)] = int(getattr(each, "num_packed_bytes", 0))
        if isinstance(each, torch.Tensor) and each.layout is torch.strided:
            storage = each.untyped_storage()  # several tensors may share one
            sizes[storage.data_ptr()] = storage.nbytes()
        else:
            found.extend(gc.get_referents(each))
    return sum(sizes.values())


def load_pipeline(model: Model, settings: Settings, kind: Kind | None = None) -> Any:
    """Load a diffusers pipeline of whatever class its `model_index.json` names, if that is of `kind`.

    Quantised if the entry says so, but for what decodes: that is where errors are seen, and it is small.

    Raises:
        Unfit: it is not, or its files do not fit together.
    """
    from diffusers import DiffusionPipeline  # text and speech do without it

    weights = open_weights(model, settings, kind)
    pipeline = DiffusionPipeline.from_pretrained(
        weights.folder, dtype=weights.dtype, trust_remote_code=False, **weights.arguments
    )
    for part, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            check_is_complete(part, [name for name, each in network.named_parameters() if each.is_meta])
    pipeline.set_progress_bar_config(disable=True)
    if model.quantisation is not None:
        quantise(part for name, part in pipeline.components.items() if name in QUANTISED and part is not None)
    return pipeline.to(weights.device)  # `device=` above would be ignored in silence
