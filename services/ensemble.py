"""Several generations that answer one request: followed one after the other, made side by side, and paid for as one."""

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

from services.engine.events import Done, Event
from services.engine.generation import Generation, Tally
from services.engine.metrics import Ending

GRAVITY = (Ending.COMPLETE, Ending.LEFT, Ending.LATE, Ending.FAILED)  # the last of them counts for all


class Ensemble:
    """Looks like a `Generation`, whose outputs are those of all, in their order, with one `Done` at the end."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        """Follow `generations`; the first one's seed and place in the queue are the request's."""
        self._all = generations
        self._first = generations[0]
        self.seed, self.model = self._first.seed, self._first.model

    @property
    def position(self) -> int | None:
        """Requests that were ahead of the first."""
        return self._first.position

    @property
    def num_iterations(self) -> int:
        """Of all."""
        return sum(each.num_iterations for each in self._all)

    @property
    def seconds_queued(self) -> float:
        """Until the first was begun."""
        return self._first.seconds_queued

    @property
    def seconds_run(self) -> float:
        """Since the first was begun."""
        return self._first.seconds_run

    def cancel(self) -> None:
        """Stop all."""
        for each in self._all:
            each.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Follow each to its end.

        Raises:
            ServiceError: what ended one of them; the others are for the caller to cancel.
        """
        made: Counter[str] = Counter()
        done = Done()
        for each in self._all:
            async for event in each:
                if isinstance(event, Done):
                    made.update(event.usage)
                    done = Done(dict(made), event.finish_reason)
                else:
                    yield event
        yield done


class OneReceipt:
    """Adds up what came of several generations, and tells it once all have ended."""

    def __init__(self, number: int, tell: Callable[[Tally], None]) -> None:
        """Wait for `number` of them."""
        self._missing = number
        self._tell = tell
        self._tallies: list[Tally] = []
        self._lock = threading.Lock()

    def add(self, tally: Tally) -> None:
        """Take one; from any thread."""
        with self._lock:
            self._tallies.append(tally)
            if len(self._tallies) < self._missing:
                return
        made: Counter[str] = Counter()
        for each in self._tallies:
            made.update(each.made)
        self._tell(
            Tally(
                tally.model,
                max((each.ending for each in self._tallies), key=GRAVITY.index),
                dict(made),
                sum(each.iterations for each in self._tallies),
                min(each.queue_seconds for each in self._tallies),
                max(each.run_seconds for each in self._tallies),
            )
        )
