"""The pictures that jobs were made of, as long as there is room: the gateway gives no uploads back; knows no page."""

from collections import OrderedDict
from threading import Lock

from ui.bodies import Picture

MAX_BYTES = 256_000_000


class Attached:
    """Pictures by the id of the job that was made of them; in memory, and the oldest make room for new ones."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Begin with none."""
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._lock = Lock()
        self._left = max_bytes

    def keep(self, job_id: str, picture: Picture) -> None:
        """Keep what a job is made of."""
        with self._lock:
            self._pictures[job_id] = picture
            self._left -= len(picture.content)
            while self._left < 0:
                self._left += len(self._pictures.popitem(last=False)[1].content)

    def of(self, job_id: str) -> Picture | None:
        """What a job was made of, if it is still here."""
        with self._lock:
            return self._pictures.get(job_id)
