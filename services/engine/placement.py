"""Where models run and in which precision: chosen once a process and logged."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from services.errors import ModelUnavailable
from services.settings import Settings

logger = logging.getLogger("atelier.engine")


@dataclass(frozen=True)
class Placement:
    """A device and the floating-point type that weights have on it."""

    device: torch.device
    dtype: torch.dtype


@cache
def choose_placement(device: str, dtype: str, half: str = "float16") -> Placement:
    """Resolve `auto`: the first accelerator there is, in half precision; else the CPU in float32.

    Args:
        device: `auto`, or what `torch.device` takes.
        dtype: `auto`, or the name of a torch type.
        half: the type that `auto` takes on an accelerator.

    Raises:
        ModelUnavailable: this build of torch cannot use that device.
    """
    try:
        chosen = torch.device(best_device() if device == "auto" else device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        raise ModelUnavailable(
            f"ATELIER_DEVICE={device} cannot be used: it is no device of this machine, or none that its torch build "
            f"({torch.__version__}) can use"
        ) from error
    automatic = "float32" if chosen.type == "cpu" else half
    placement = Placement(chosen, getattr(torch, automatic if dtype == "auto" else dtype))
    logger.info("models run on %s in %s, %d threads", chosen, placement.dtype, torch.get_num_threads())
    return placement


def accelerate(network: Any, settings: Settings) -> Any:
    """Make a denoiser faster where that does not change its results: memory layout on CUDA, compilation if set."""
    if network.device.type == "cuda" and all(weight.dim() < 5 for weight in network.parameters()):  # films have more
        network = network.to(memory_format=torch.channels_last)
    return torch.compile(network, dynamic=True) if settings.compile else network


def best_device() -> str:
    """The accelerator torch sees, or `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
