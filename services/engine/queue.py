"""Who is next: the higher priority, then the caller who has been served least, then whoever came first.

Within a priority this is start-time fair queueing: a request's turn is the later of its caller's last turn and the turn
being served, plus one. Who sends many at once waits behind those who send one.
"""

from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What waits."""

    caller: str
    priority: int  # higher is sooner


W = TypeVar("W", bound=Waiting)


class FairQueue(Generic[W]):
    """Requests that wait. Not thread-safe."""

    def __init__(self) -> None:
        """Start empty."""
        self._turns: dict[W, tuple[int, int, int]] = {}  # in the order they came; what they are sorted by
        self._last_turns: dict[str, int] = {}  # of callers who are ahead of what is being served
        self._served = 0
        self._count = 0

    def __len__(self) -> int:
        """Count who waits."""
        return len(self._turns)

    def __contains__(self, item: object) -> bool:
        """Whether it waits."""
        return item in self._turns

    def push(self, item: W) -> None:
        """Let `item` wait."""
        turn = max(self._last_turns.get(item.caller, 0), self._served) + 1
        self._last_turns[item.caller] = turn
        self._count += 1
        self._turns[item] = (-item.priority, turn, self._count)

    def remove(self, item: W) -> None:
        """Let `item` wait no longer.

        Raises:
            KeyError: it does not wait.
        """
        del self._turns[item]
        if not self._turns:  # nobody is ahead of anybody any more
            self._last_turns.clear()
            self._served = 0

    def serve(self, item: W) -> None:
        """Take `item` out, as its turn has come."""
        self._served = max(self._served, self._turns[item][1])
        self._last_turns = {caller: turn for caller, turn in self._last_turns.items() if turn > self._served}
        self.remove(item)

    def in_order(self) -> list[W]:
        """Everyone, the next one first."""
        return sorted(self._turns, key=self._turns.__getitem__)
