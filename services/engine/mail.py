"""Events from the engine's thread to an event loop: waking the loop is what costs, so that is done once for many."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, ref


class Mail:
    """What is to be put into queues of one event loop, in order; may be posted from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on `loop`."""
        self._loop = ref(loop)
        self._letters: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._is_held = False
        self._is_on_its_way = False
        self._lock = threading.Lock()

    def post(self, queue: asyncio.Queue[Any], event: Any) -> None:
        """Put `event` into `queue` as soon as the loop gets to it."""
        with self._lock:
            self._letters.append((queue, event))
            if self._is_held or self._is_on_its_way:
                return
            self._is_on_its_way = True
        self._wake()

    def hold(self) -> None:
        """Collect what is posted from here on."""
        self._is_held = True

    def release(self) -> None:
        """Send what has been collected."""
        with self._lock:
            self._is_held = False
            if not self._letters or self._is_on_its_way:
                return
            self._is_on_its_way = True
        self._wake()

    def _wake(self) -> None:
        loop = self._loop()
        if loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            self._is_on_its_way = False
            letters = tuple(self._letters)
            self._letters.clear()
        for queue, event in letters:
            queue.put_nowait(event)


_MAILS: WeakKeyDictionary[asyncio.AbstractEventLoop, Mail] = WeakKeyDictionary()


def mail_of(loop: asyncio.AbstractEventLoop) -> Mail:
    """Return the one mail of `loop`."""
    return _MAILS.setdefault(loop, Mail(loop))


@contextlib.contextmanager
def together(mails: Iterable[Mail]) -> Iterator[None]:
    """Send what is posted meanwhile in one go."""
    distinct = set(mails)
    for mail in distinct:
        mail.hold()
    try:
        yield
    finally:
        for mail in distinct:
            mail.release()
