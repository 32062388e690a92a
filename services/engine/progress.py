"""How far a load is: what is told where files are fetched and read, and seen where somebody waits; knows no model."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """How far a model is on its way into memory.

    Args:
        phase: `downloading` from the hub, `building` a tiny checkpoint, or `reading` weights from the disk.
        num_bytes: that are here, of a download.
        total_bytes: that it has, as far as is known.
    """

    phase: Literal["downloading", "building", "reading"]
    num_bytes: int | None = None
    total_bytes: int | None = None

    def __str__(self) -> str:
        """Say it in few words."""
        if self.num_bytes is None or not self.total_bytes:
            return self.phase
        return f"{self.phase}, {self.num_bytes / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB"


Tell = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """Tell nobody."""


listener: ContextVar[Tell] = ContextVar("listener", default=nobody)  # of the load on this thread
