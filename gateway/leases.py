"""Places that are taken while a stream lasts."""

from collections import Counter
from typing import Protocol


class Leases(Protocol):
    """Counts the places that each holder has."""

    async def take(self, holder: str, num_places: int) -> str | None:
        """Take a place and return its name, or None where the holder has as many as that."""

    async def give_back(self, holder: str, place: str) -> None:
        """Give it back."""


class MemoryLeases:
    """Of one gateway; they end with it."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    async def take(self, holder: str, num_places: int) -> str | None:
        """Take a place, if there is one."""
        if self._taken[holder] >= num_places:
            return None
        self._taken[holder] += 1
        return holder

    async def give_back(self, holder: str, place: str) -> None:
        """Give it back."""
        self._taken[holder] -= 1
        if not self._taken[holder]:
            del self._taken[holder]
