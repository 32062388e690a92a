"""Which replica of a worker takes the next request: the least busy of those that are well. Asks nobody itself."""

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Literal

State = Literal["ready", "loading", "failed", "unreachable"]
BY_WORTH: tuple[State, ...] = ("ready", "loading", "failed", "unreachable")
NUM_FAILURES = 3  # requests that broke off in a row, and a replica rests
REST_SECONDS = 10.0  # at least; it returns when it is ready


class Replica:
    """One worker process, as far as is known. It counts as ready until somebody finds that it is not."""

    def __init__(self, url: str) -> None:
        """Take its base URL."""
        self.url = url
        self.state: State = "ready"
        self._num_outstanding = 0
        self._num_failures = 0
        self._rests_until = 0.0

    @property
    def num_outstanding(self) -> int:
        """Requests that have not ended."""
        return self._num_outstanding

    @property
    def is_usable(self) -> bool:
        """Whether requests go well here, by all that is known."""
        return self.state == "ready" and time.monotonic() >= self._rests_until

    def take(self, leases: AsyncExitStack) -> None:
        """Count a request until its `leases` end."""
        self._num_outstanding += 1
        leases.callback(self._give_back)

    def _give_back(self) -> None:
        self._num_outstanding -= 1

    def answered(self) -> None:
        """Note that it lives."""
        self._num_failures = 0

    def refused_connection(self) -> None:
        """Leave it out until it says that it is ready."""
        self.state = "unreachable"

    def broke_off(self) -> None:
        """Note that a request was lost; leave it out for a while if that happens again and again."""
        self._num_failures += 1
        if self._num_failures >= NUM_FAILURES:
            self._num_failures = 0
            self._rests_until = time.monotonic() + REST_SECONDS


class Replicas:
    """All workers that serve the same models."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Take their base URLs."""
        self._chance = random.Random()  # of its own: what seeds the process's makes gateways choose alike
        self.all: Sequence[Replica] = tuple(Replica(url) for url in urls)

    def at(self, urls: Sequence[str]) -> list[Replica]:
        """Those at these URLs, known and new."""
        known = {replica.url: replica for replica in self.all}
        return [known.get(url) or Replica(url) for url in urls]

    def in_order(self) -> list[Replica]:
        """Those to be tried, one after the other; where none is well, all: they say best themselves what is wrong."""
        if len(self.all) == 1:
            return list(self.all)
        usable = [replica for replica in self.all if replica.is_usable] or list(self.all)
        self._chance.shuffle(usable)  # who is equally busy takes turns
        return sorted(usable, key=lambda replica: replica.num_outstanding)

    @property
    def state(self) -> State:
        """The best of all states; there may be none."""
        return min((replica.state for replica in self.all), key=BY_WORTH.index, default="unreachable")

    @property
    def num_ready(self) -> int:
        """How many can take requests."""
        return sum(replica.state == "ready" for replica in self.all)
