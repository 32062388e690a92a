"""How many requests share a forward: as many as make it worth while, by what forwards were measured to take."""

from collections import deque

NUM_SAMPLES = 5  # the last ones, of which the fastest counts: whatever else a machine does only adds to it
NUM_TRIALS = 3  # before a size is given up
WORTH = 0.03  # one more must make the work of each cheaper by this part
CURIOSITY = 50  # forwards after which one more than the limit is tried again


class BatchSizer:
    """Forwards of one kind (phase, shapes): their seconds by how many shared them."""

    def __init__(self, most: int) -> None:
        """Allow `most` at most."""
        self._most = most
        self._samples: dict[int, deque[float]] = {}
        self._fastest: dict[int, float] = {}
        self._fit: tuple[float, float] | None = None
        self._num_forwards = 0
        self._curious: int | None = None  # the size beyond the limit that is tried again, while it is

    @property
    def most(self) -> int:
        """How many memory suffices for."""
        return self._most

    def note(self, size: int, seconds: float) -> None:
        """Remember a forward of `size` requests."""
        self._num_forwards += 1
        samples = self._samples.setdefault(size, deque(maxlen=NUM_SAMPLES))
        samples.append(seconds)
        fastest = min(samples)
        if self._fastest.get(size) != fastest:
            self._fastest[size] = fastest
            self._fit = None  # is made when it is asked for
        if size == self._curious:
            self._believe(size)

    def halve(self, size: int) -> None:
        """Remember that memory did not suffice for `size`."""
        self._most = max(1, size // 2)

    def limit(self, longest: float) -> int:
        """How many requests the next forward may have.

        It grows by doubling until forwards of that size are measured. The seconds are taken as `a + b * size` (least
        squares), and the batch grows while another request makes everyone's share cheaper. Now and then one more than
        that is tried again, as the machine may have been busy.

        Args:
            longest: seconds that a forward of more than one may take.
        """
        if not self._samples:
            return 1
        tried = max(self._samples)
        allowed = min(self._most, 2 * tried)
        if len(self._samples) == 1:
            return allowed
        self._curious = None
        fixed, each = self._fit = self._fit or self._fitted()
        for size in range(1, allowed):
            seconds = fixed + each * (size + 1)
            gain = 1 - seconds / (size + 1) / (fixed / size + each)
            if seconds <= longest and gain >= WORTH:
                continue
            is_tried = seconds > longest or len(self._samples.get(size + 1, ())) >= NUM_TRIALS
            if is_tried and self._num_forwards % CURIOSITY:
                return size
            self._curious = size + 1
            return size + 1
        return allowed

    def _believe(self, size: int) -> None:
        """Forget what larger sizes took, if `size` has paid against the fit: they were measured at another time."""
        one_less = self._fastest.get(size - 1)
        if one_less is None or self._fastest[size] / size > (1 - WORTH) * one_less / (size - 1):
            return
        for larger in [other for other in self._samples if other > size]:
            del self._samples[larger], self._fastest[larger]
            self._fit = None

    def _fitted(self) -> tuple[float, float]:
        """Seconds of a forward as (what it takes whatever its size, what each request adds); neither is negative."""
        points = self._fastest.items()
        mean_size = sum(size for size, _ in points) / len(points)
        mean_seconds = sum(seconds for _, seconds in points) / len(points)
        spread = sum((size - mean_size) ** 2 for size, _ in points)
        each = sum((size - mean_size) * (seconds - mean_seconds) for size, seconds in points) / spread
        each = min(max(each, 0.0), mean_seconds / mean_size)
        return mean_seconds - each * mean_size, each
