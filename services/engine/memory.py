"""How much memory requests may take, and what is done when an estimate was wrong."""

import ctypes
import gc
import sys
from functools import cache
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")  # in a container its own, which may have a limit


def free_bytes(device: str) -> int:
    """Memory that can still be used on `device`: an accelerator's own, or the machine's and the container's."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # for the next tensors
        return int(free + kept)
    available = int(psutil.virtual_memory().available)
    left = left_in_group(GROUPS)
    return available if left is None else min(available, left)


def left_in_group(folder: Path) -> int | None:
    """Bytes that a control group may still take, its cache of files given up; None where it has no limit.

    Args:
        folder: of the groups, in version 2 or 1.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst
    """
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = folder / limit_file, folder / used_file
        if limit.exists() and limit.read_text().strip() != "max":
            counts = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
            return max(0, int(limit.read_text()) - int(used.read_text()) + int(counts["inactive_file"]))
    return None


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
