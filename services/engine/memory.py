"""How much memory requests may take, and what is done when an estimate was wrong."""

import ctypes
import gc
import sys
from functools import cache

import psutil


def free_bytes(device: str) -> int:
    """Memory that can still be used on `device`: an accelerator's own, or the machine's."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # for the next tensors
        return int(free + kept)
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice; torch has a class for accelerators, and words for the CPU."""
    name = type(error).__name__
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in str(error)


@cache
def set_libraries_aside() -> None:
    """Search what has been imported by now no more for garbage: half a second of nothing else, whenever a model leaves.

    To be called before there is a model: it would never be freed.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Free what nobody refers to any more, on the accelerator too."""
    gc.collect()
    torch = sys.modules.get("torch")  # this module is used without it as well
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)  # else glibc keeps what was freed between what is in use
