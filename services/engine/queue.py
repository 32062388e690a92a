"""Who is next: the higher priority, then the caller who has been served least, then whoever came first.

Within a priority this is start-time fair queueing: a caller's requests have turns one after the other, beginning behind
the one being served or the caller's last, whichever is later. Who sends many at once waits behind those who send one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What waits."""

    caller: str
    priority: int  # higher is sooner


W = TypeVar("W", bound=Waiting)


@dataclass
class Line(Generic[W]):
    """A caller's requests of one priority, in the order they came.

    Args:
        last: the turn that the caller has had.
    """

    last: int
    items: list[W] = field(default_factory=list)


@dataclass
class Level(Generic[W]):
    """A priority.

    Args:
        turn: what is being served.
        lines: by caller; one without requests is of a caller who is ahead of `turn`.
    """

    turn: int = 0
    lines: dict[str, Line[W]] = field(default_factory=dict)


class FairQueue(Generic[W]):
    """Requests that wait. Not thread-safe."""

    def __init__(self) -> None:
        """Start empty."""
        self._arrivals: dict[W, int] = {}
        self._levels: defaultdict[int, Level[W]] = defaultdict(Level)
        self._count = 0
        self._order: Sequence[W] | None = None  # until it changes: the engine asks before every forward

    def __len__(self) -> int:
        """Count who waits."""
        return len(self._arrivals)

    def __contains__(self, item: object) -> bool:
        """Whether it waits."""
        return item in self._arrivals

    def push(self, item: W) -> None:
        """Let `item` wait."""
        self._order = None
        self._count += 1
        self._arrivals[item] = self._count
        level = self._levels[item.priority]
        line = level.lines.setdefault(item.caller, Line(level.turn))
        if not line.items:
            line.last = max(line.last, level.turn)
        line.items.append(item)

    def remove(self, item: W) -> None:
        """Let `item` wait no longer; its turn goes to the next of its caller.

        Raises:
            KeyError: it does not wait.
        """
        del self._arrivals[item]
        self._order = None
        self._levels[item.priority].lines[item.caller].items.remove(item)
        self._forget(item.priority)

    def serve(self, item: W) -> None:
        """Take `item` out, as its turn has come."""
        level = self._levels[item.priority]
        line = level.lines[item.caller]
        level.turn = max(level.turn, line.last + 1)
        line.last += 1
        self.remove(item)

    def in_order(self) -> Sequence[W]:
        """Everyone, the next one first."""
        if self._order is None:
            self._order = self._sorted()
        return self._order

    def _sorted(self) -> Sequence[W]:
        ranks = {
            item: (-priority, line.last + place, self._arrivals[item])
            for priority, level in self._levels.items()
            for line in level.lines.values()
            for place, item in enumerate(line.items)
        }
        return tuple(sorted(ranks, key=ranks.__getitem__))

    def _forget(self, priority: int) -> None:
        """Keep of those who do not wait only who is ahead of others that do."""
        level = self._levels[priority]
        level.lines = {caller: line for caller, line in level.lines.items() if line.items or line.last > level.turn}
        if not any(line.items for line in level.lines.values()):
            del self._levels[priority]
