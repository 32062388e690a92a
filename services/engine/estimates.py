"""What requests will take is found out beside the engine's thread, one after the other, the callers in turn."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from services.engine.generation import Terms, restarting
from services.engine.queue import FairQueue


@dataclass(eq=False)
class Errand:
    """Something to be found out."""

    caller: str
    priority: int
    find: Callable[[], int]
    found: Future[int] = field(default_factory=Future)


class Estimates:
    """One thread: it shares the processor with the engine's."""

    def __init__(self) -> None:
        """Start idle."""
        self._thread = ThreadPoolExecutor(1, "estimates")
        self._lock = threading.Lock()
        self._waiting: FairQueue[Errand] = FairQueue()

    async def of(self, find: Callable[[], int], terms: Terms) -> int:
        """Return what `find` does when its caller's turn has come.

        Raises:
            Exception: what `find` raised.
            ModelLoading: the worker is going down.
        """
        errand = Errand(terms.caller, terms.priority, find)
        with self._lock:
            self._waiting.push(errand)
        try:
            self._thread.submit(self._run_next)
        except RuntimeError as error:  # it has been shut down
            raise restarting() from error
        return await asyncio.wrap_future(errand.found)

    def close(self) -> None:
        """Begin nothing more, and tell everyone who waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            unknown = self._waiting.in_order()
            for errand in unknown:
                self._waiting.remove(errand)
        for errand in unknown:
            if errand.found.set_running_or_notify_cancel():
                errand.found.set_exception(restarting())

    def _run_next(self) -> None:
        with self._lock:
            errand = next(iter(self._waiting.in_order()), None)
            if errand is None:
                return
            self._waiting.serve(errand)
        if not errand.found.set_running_or_notify_cancel():  # its caller has left
            return
        try:
            found = errand.find()
        except BaseException as error:
            errand.found.set_exception(error)
        else:
            errand.found.set_result(found)
