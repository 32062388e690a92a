"""Linear layers of fewer bits. On a CPU they are packed once, and a row comes out the same whatever is beside it."""

import warnings
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import linear, pad

Packing = Literal["none", "float16", "int8", "int4"]

ENGINE = "fbgemm"
ROWS = 3  # FBGEMM adds up otherwise where one or two rows are left over; of a multiple of three none are
TINY = torch.finfo(torch.float32).tiny
HALF_BYTES = 2
OUTPUT_BYTES = 12  # for each output of 8-bit weights: scale, zero and sum
EDGES = torch.tensor((1.0, -1.0))  # at the end of every row, where no weight is: all have the same range then
GROUP = 32  # weights of 4 bits that share a scale and an offset
OUTPUTS = 16  # of which the kernel for 4 bits takes a multiple


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


class Int4Linear(nn.Module):
    """Weights of 4 bits with a scale and an offset for each group of inputs; rows are rounded to bfloat16.

    Of float32 and float16 torch's kernel takes each number by itself, and a hundred times as long.
    """

    def __init__(self, like: nn.Linear) -> None:
        """Round the weights of `like`; where they fill no group, or no block of outputs, zeros do."""
        super().__init__()
        self._width, self._new_width = like.in_features, like.out_features
        weight = pad(like.weight.detach().float(), (0, -self._width % GROUP, 0, -self._new_width % OUTPUTS))
        numbers, scales, offsets = grouped(weight)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.flatten(1).int(), 1)
        self._scales = torch.cat((scales, offsets), 2).transpose(0, 1).contiguous()
        self._bias = None if like.bias is None else like.bias.detach().float()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows, float32 of shape (..., width), to (..., new width)."""
        flat = pad(rows.reshape(-1, self._width).bfloat16(), (0, -self._width % GROUP))
        made: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self._packed, GROUP, self._scales)
        made = made[:, : self._new_width].float()
        if self._bias is not None:
            made += self._bias
        return made.reshape(*rows.shape[:-1], -1)


class UnpackedInt8Linear(nn.Module):
    """Weights of 8 bits with a scale for each output, made large again in every forward: for any device."""

    def __init__(self, like: nn.Linear) -> None:
        """Round the weights of `like`."""
        super().__init__()
        weight = like.weight.detach().float()
        self._scales = nn.Buffer(weight.abs().amax(1, keepdim=True).clamp(min=TINY) / 127)
        self._numbers = nn.Buffer((weight / self._scales).round_().to(torch.int8))
        self.bias = like.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows of shape (..., width) to (..., new width)."""
        return linear(rows, (self._numbers * self._scales).to(rows.dtype), self.bias)


class UnpackedInt4Linear(nn.Module):
    """Weights of 4 bits, two in a byte, made large again in every forward: for any device."""

    def __init__(self, like: nn.Linear) -> None:
        """Round the weights of `like`; where they fill no group, zeros do."""
        super().__init__()
        self._width = like.in_features
        numbers, scales, offsets = grouped(pad(like.weight.detach().float(), (0, -self._width % GROUP)))
        self._numbers = nn.Buffer(numbers[..., ::2] << 4 | numbers[..., 1::2])
        self._scales, self._offsets = nn.Buffer(scales), nn.Buffer(offsets)
        self.bias = like.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows of shape (..., width) to (..., new width)."""
        numbers = torch.stack((self._numbers >> 4, self._numbers & 15), 3).flatten(2)
        weight = ((numbers.float() - 8) * self._scales + self._offsets).flatten(1)
        return linear(rows, weight[:, : self._width].to(rows.dtype), self.bias)


def grouped(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round weights, whose width is a multiple of `GROUP`, to 4 bits: numbers less 8, by a scale, and an offset added.

    Returns:
        Numbers, uint8 of shape (outputs, groups, GROUP); scales and offsets, bfloat16 of shape (outputs, groups, 1).
    """
    groups = weight.reshape(len(weight), -1, GROUP)
    least, most = groups.aminmax(dim=2, keepdim=True)
    scales = ((most - least) / 15).clamp(min=TINY).bfloat16()
    offsets = (least + 8 * scales.float()).bfloat16()
    numbers = ((groups - offsets.float()) / scales.float()).round_().add_(8).clamp_(0, 15).byte()
    return numbers, scales, offsets


def largest() -> int:
    """What the largest weight of an output is rounded to; half of it where sums of two products would overflow."""
    return 127 if torch.cpu.get_capabilities().get("avx512_vnni") else 63


def has_fewer_bits(network: nn.Module) -> bool:
    """Whether any layer of a model has weights of 8 or 4 bits."""
    kinds = (Int8Linear, Int4Linear, UnpackedInt8Linear, UnpackedInt4Linear)
    return any(isinstance(module, kinds) for module in network.modules())


def is_supported(device: torch.device) -> bool:
    """Whether layers can be packed there."""
    return device.type == "cpu" and ENGINE in torch.backends.quantized.supported_engines


def fits(layer: nn.Linear) -> bool:
    """Whether 16 bits hold all weights; what is no number would become one."""
    return bool((layer.weight.abs() <= torch.finfo(torch.float16).max).all())


def pack(network: nn.Module, packing: Packing, spared: Collection[nn.Module] = ()) -> None:
    """Replace the linear layers of a model on a CPU, but for those that do not fit; all else becomes float32.

    Args:
        network: the model.
        packing: of its layers.
        spared: layers that keep 16 bits.
    """
    torch.backends.quantized.engine = ENGINE
    rounding = Rounding()
    makers: dict[Packing, Callable[[nn.Linear], nn.Module]] = {
        "float16": HalfLinear,
        "int8": lambda layer: Int8Linear(layer, rounding),
        "int4": Int4Linear,
    }
    replace(network, lambda layer: HalfLinear(layer) if layer in spared else makers[packing](layer))
    network.float()


def shrink(network: nn.Module, packing: Packing, spared: Collection[nn.Module] = ()) -> None:
    """Replace the linear layers of a model for any device, but for those that do not fit and those that are spared."""
    make = UnpackedInt8Linear if packing == "int8" else UnpackedInt4Linear
    replace(network, lambda layer: layer if layer in spared else make(layer))


def replace(network: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put what `make` returns in place of each linear layer whose weights 16 bits hold."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and fits(child):
                setattr(module, name, make(child))
