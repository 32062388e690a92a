"""Leaves a server alone that has failed again and again, and tries it again with one request at a time."""

import time
from collections.abc import Callable

NUM_FAILURES = 5  # in a row
REST_SECONDS = 30.0


class Breaker:
    """Closed: everybody may ask. Open: nobody. Half open: one request in each `REST_SECONDS`, until one succeeds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin closed; `clock` gives seconds."""
        self._clock = clock
        self._num_failures = 0
        self._rests_until = 0.0

    @property
    def seconds_left(self) -> float:
        """Until the next request may try; 0: it may now."""
        if self._num_failures < NUM_FAILURES:
            return 0.0
        return max(0.0, self._rests_until - self._clock())

    def admit(self) -> bool:
        """Whether a request may be sent. Whoever tries an open one keeps the others off, however the attempt ends."""
        if self.seconds_left:
            return False
        if self._num_failures >= NUM_FAILURES:
            self._rests_until = self._clock() + REST_SECONDS
        return True

    def succeeded(self) -> None:
        """Close."""
        self._num_failures = 0

    def failed(self) -> None:
        """Count, and open when it has been too many."""
        self._num_failures += 1
        self._rests_until = self._clock() + REST_SECONDS
