"""Adapters (LoRA): weights of low rank that rows ask for beside a model's own; knows no request.

Those of a layer lie side by side, and a row's numbers for what it has not asked for are nought: rows of any adapter,
and of none, share a forward, and a row comes out the same whatever is beside it.

Source: Hu et al., LoRA (2021). Files are as the library peft writes them.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")
UNSERVED = (  # what changes more than linear layers, or otherwise
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
BESIDE = (True, False, "gaussian", "orthogonal", "eva")  # ways to begin that leave the model's own weights alone


class UnfitAdapter(Exception):
    """An adapter cannot be added to the model, in a sentence."""


class Description(BaseModel):
    """What an adapter's configuration says of how its weights are to be taken."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: int = Field(ge=1)
    lora_alpha: float
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    alpha_pattern: Mapping[str, float] = {}

    def scale(self, layer: str, rank: int) -> float:
        """What the product of a layer's two matrices is multiplied by."""
        named = (alpha for name, alpha in self.alpha_pattern.items() if re.match(rf"(.*\.)?({name})$", layer))
        return next(named, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def unserved(self) -> str | None:
        """The first setting that asks for more than is done here."""
        if self.peft_type != "LORA":
            return f"peft_type {self.peft_type}"
        if self.bias != "none":
            return f"bias {self.bias}"
        if self.init_lora_weights not in BESIDE:
            return f"init_lora_weights {self.init_lora_weights}, which changes the model's own weights"
        return next((name for name in UNSERVED if (self.model_extra or {}).get(name)), None)


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to a layer.

    Args:
        down: (rank, width), float32.
        up: (new width, rank), float32, with the scale in it.
    """

    down: torch.Tensor
    up: torch.Tensor


def read_adapter(folder: Path, scale: float) -> dict[str, Delta]:
    """Read what an adapter adds, by the names of the layers.

    Args:
        folder: it has the two files in it.
        scale: what it is multiplied by besides.

    Raises:
        UnfitAdapter: it is not one of those that are served.
    """
    described = describe(folder)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors(folder).items():
        found = TENSOR.fullmatch(name)
        if found is None:
            raise UnfitAdapter(f"{WEIGHTS} has '{name}' in it; only linear layers' lora_A and lora_B are served")
        halves.setdefault(found["layer"], {})[found["half"]] = tensor.float()
    if not halves:
        raise UnfitAdapter(f"{WEIGHTS} has nothing in it")
    deltas = {}
    for layer, half in halves.items():
        down, up = half.get("A"), half.get("B")
        if down is None or up is None or down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1]:
            raise UnfitAdapter(f"its two matrices for '{layer}' do not fit together")
        deltas[layer] = Delta(down, up * described.scale(layer, len(down)) * scale)
        if not all(half.isfinite().all() for half in (deltas[layer].down, deltas[layer].up)):
            raise UnfitAdapter(f"its matrices for '{layer}' have something in them that is no number")
    return deltas


def describe(folder: Path) -> Description:
    """Read an adapter's configuration.

    Raises:
        UnfitAdapter: there is none, or it asks for more than is done here.
    """
    try:
        described = Description.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except OSError as error:
        raise UnfitAdapter(f"{CONFIG}: {(error.strerror or str(error)).lower()}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UnfitAdapter(f"{CONFIG}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    except ValueError as error:
        raise UnfitAdapter(f"{CONFIG}: {error}") from error
    if described.unserved is not None:
        raise UnfitAdapter(f"it has {described.unserved}; only plain LoRA of linear layers is served")
    return described


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read an adapter's weights.

    Raises:
        UnfitAdapter: there are none, or they are damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except OSError as error:
        raise UnfitAdapter(f"{WEIGHTS}: {(error.strerror or str(error)).lower()}") from error
    except SafetensorError as error:
        raise UnfitAdapter(f"{WEIGHTS}: {error}") from error


class Mix:
    """Which adapter each row of the next forward has."""

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of all there are."""
        self._numbers = {name: number for number, name in enumerate(names)}
        self._rows: torch.Tensor | None = None
        self._masks: dict[tuple[int, ...], torch.Tensor] = {}

    def choose(self, names: Sequence[str | None]) -> None:
        """Say which adapter each row has, if any."""
        self._masks = {}
        self._rows = None
        if any(name is not None for name in names):
            self._rows = torch.tensor([-1 if name is None else self._numbers[name] for name in names])

    def number(self, name: str) -> int:
        """Which of all an adapter is."""
        return self._numbers[name]

    def mask(self, owners: tuple[int, ...], low: torch.Tensor) -> torch.Tensor:
        """Return 1 where a row has the adapter that a column belongs to, else 0.

        Args:
            owners: the number of each column's adapter.
            low: has the type and the device, and as many rows as there are.
        """
        if self._rows is None or low.shape[:-1].numel() != len(self._rows):
            raise RuntimeError("a layer with adapters reads other rows than the model does")
        if owners not in self._masks:
            self._masks[owners] = (self._rows[:, None] == torch.tensor(owners)).to(low)
        return self._masks[owners]

    @property
    def is_asked(self) -> bool:
        """Whether any row has one."""
        return self._rows is not None


class Adapted(nn.Module):
    """A linear layer, and what adapters add to it."""

    def __init__(self, layer: nn.Linear, deltas: Mapping[int, Delta], mix: Mix) -> None:
        """Lay the deltas side by side.

        Args:
            layer: the model's own.
            deltas: by the adapters' numbers.
            mix: what the rows have.
        """
        super().__init__()
        self._owners = tuple(number for number, delta in deltas.items() for _ in range(len(delta.down)))
        self.layer: nn.Module = layer
        self.down: nn.Module = linear_of(torch.cat([delta.down for delta in deltas.values()]))
        self.up: nn.Module = linear_of(torch.cat([delta.up for delta in deltas.values()], 1))
        self._mix = mix

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows of shape (..., width) to (..., new width)."""
        made: torch.Tensor = self.layer(rows)
        if self._mix.is_asked:
            low = self.down(rows)
            made = made + self.up(low * self._mix.mask(self._owners, low))
        return made


def linear_of(weight: torch.Tensor) -> nn.Linear:
    """Return a layer of these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def adapt(network: Any, adapters: Mapping[str, Mapping[str, Delta]], mix: Mix) -> list[nn.Module]:
    """Put layers that adapters can change in place of a model's own, and return the layers of low rank.

    Args:
        network: the library's model, as it was loaded.
        adapters: what each adds, by the names of the layers.
        mix: what the rows of a forward have.

    Raises:
        UnfitAdapter: one is not for this model.
    """
    changed: dict[str, dict[int, Delta]] = {}
    for name, deltas in adapters.items():
        for layer, delta in deltas.items():
            check_fits(network, name, layer, delta)
            changed.setdefault(layer, {})[mix.number(name)] = delta
    made: list[nn.Module] = []
    for layer, own in changed.items():
        adapted = Adapted(network.get_submodule(layer), own, mix)
        network.set_submodule(layer, adapted)
        made += (adapted.down, adapted.up)
    return made


def check_fits(network: Any, adapter: str, layer: str, delta: Delta) -> None:
    """Compare what an adapter adds with the layer.

    Raises:
        UnfitAdapter: there is no such layer, or it is another.
    """
    try:
        found = network.get_submodule(layer)
    except AttributeError as error:
        raise UnfitAdapter(f"adapter '{adapter}' is for another model: there is no layer '{layer}'") from error
    if type(found) is not nn.Linear or found is network.get_output_embeddings():
        raise UnfitAdapter(f"adapter '{adapter}' changes '{layer}', which is no linear layer inside of the model")
    own, others = (found.in_features, found.out_features), (delta.down.shape[1], delta.up.shape[0])
    if own != others:
        raise UnfitAdapter(f"adapter '{adapter}' is for another model: '{layer}' maps {own}, and its own {others}")


@contextmanager
def watched(network: nn.Module) -> Iterator[Counter[str]]:
    """Count how often each layer with adapters is asked."""
    counts: Counter[str] = Counter()
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Adapted)}
    counts.update(dict.fromkeys(layers, 0))
    hooks = [layer.register_forward_hook(lambda *_, name=name: counts.update([name])) for name, layer in layers.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
