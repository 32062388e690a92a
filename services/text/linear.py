"""Linear layers on a CPU: weights of 16 or 8 bits, packed once. A row comes out the same whatever is beside it."""

import warnings
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import pad

Packing = Literal["none", "float16", "int8"]

ENGINE = "fbgemm"
ROWS = 3  # FBGEMM adds up otherwise where one or two rows are left over; of a multiple of three none are
TINY = torch.finfo(torch.float32).tiny
HALF_BYTES = 2
OUTPUT_BYTES = 12  # for each output of 8-bit weights: scale, zero and sum
EDGES = torch.tensor((1.0, -1.0))  # at the end of every row, where no weight is: all have the same range then


class HalfLinear(nn.Module):
    """Weights of 16 bits; rows and sums have 32."""

    def __init__(self, like: nn.Linear) -> None:
        """Take over the weights of `like`."""
        super().__init__()
        bias = None if like.bias is None else like.bias.detach().float()
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(like.weight.detach().float(), bias)
        self.num_packed_bytes = HALF_BYTES * like.weight.numel() + (0 if bias is None else bias.nbytes)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows, float32 of shape (..., width), to (..., new width)."""
        flat = rows.reshape(-1, rows.shape[-1])
        missing = -len(flat) % ROWS
        if missing:
            flat = pad(flat, (0, 0, 0, missing))
        made: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(flat, self._packed)
        return (made[:-missing] if missing else made).reshape(*rows.shape[:-1], -1)


class Rounding:
    """Rows rounded by a scale of each row's own; once for all layers that read the same ones."""

    def __init__(self) -> None:
        """Begin with none."""
        self._rows: torch.Tensor | None = None
        self._rounded = self._scales = torch.empty(0)

    def of(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of [-1, 1] with `EDGES` behind them, (n, width + 2), and the scales, (n, 1)."""
        if rows is not self._rows:
            flat = rows.reshape(-1, rows.shape[-1])
            self._scales = flat.abs().amax(1, keepdim=True).clamp_(min=TINY)
            unit = (flat / self._scales).nan_to_num_(0)  # its scale makes not a number of such a row, and of no other
            self._rounded = torch.cat((unit, EDGES.expand(len(flat), 2)), 1)
            self._rows = rows
        return self._rounded, self._scales


class Int8Linear(nn.Module):
    """Weights of 8 bits with a scale for each output; rows are rounded to 8 bits by a scale of each row's own."""

    def __init__(self, like: nn.Linear, rounding: Rounding) -> None:
        """Round the weights of `like`."""
        super().__init__()
        weight = pad(like.weight.detach().float(), (0, len(EDGES)))
        scales = weight.abs().amax(1).clamp(min=TINY) / largest()
        with warnings.catch_warnings():  # what is announced to replace it is slower here; torch is pinned
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel")
            zeros = torch.zeros(len(scales), dtype=torch.long)
            rounded = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        self._packed: Any = torch.ops.quantized.linear_prepack(rounded, None)
        self.num_packed_bytes = weight.numel() + OUTPUT_BYTES * len(weight)
        self._bias = None if like.bias is None else like.bias.detach().float()
        self._rounding = rounding

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows, float32 of shape (..., width), to (..., new width)."""
        rounded, scales = self._rounding.of(rows)
        made: torch.Tensor = torch.ops.quantized.linear_dynamic(rounded, self._packed, False).mul_(scales)
        if self._bias is not None:
            made += self._bias
        return made.reshape(*rows.shape[:-1], -1)


def largest() -> int:
    """What the largest weight of an output is rounded to; half of it where sums of two products would overflow."""
    return 127 if torch.cpu.get_capabilities().get("avx512_vnni") else 63


def is_supported(device: torch.device) -> bool:
    """Whether layers can be packed there."""
    return device.type == "cpu" and ENGINE in torch.backends.quantized.supported_engines


def fits(layer: nn.Linear) -> bool:
    """Whether 16 bits hold all weights; what is no number would become one."""
    return bool((layer.weight.abs() <= torch.finfo(torch.float16).max).all())


def pack(network: nn.Module, packing: Packing) -> None:
    """Replace the linear layers of a model, but for those that do not fit; all else becomes float32."""
    torch.backends.quantized.engine = ENGINE
    rounding = Rounding()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and fits(child):
                setattr(module, name, HalfLinear(child) if packing == "float16" else Int8Linear(child, rounding))
    network.float()
