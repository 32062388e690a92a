"""How many tokens of prompts are read in a forward: so few that those who write are not held up long."""

MOST = 512
FEWEST = 3  # a forward of fewer takes as long
FIRST = 32  # while nothing is known
PATIENCE = 1.75  # how long a forward that reads may take, as a multiple of one that writes
LONGEST = 1.0  # seconds that it may take while nobody writes: who comes or leaves waits for it


class Portions:
    """What forwards took, and what follows from it."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._speed: float | None = None  # tokens a second, of the last forward that read
        self._writing: float | None = None  # seconds of the last forward that wrote, if it came after that

    @property
    def most(self) -> int:
        """Tokens that the next forward may read."""
        if self._speed is None:
            return FIRST
        seconds = LONGEST if self._writing is None else PATIENCE * self._writing
        return int(min(max(self._speed * seconds, FEWEST), MOST))

    def note_writing(self, seconds: float) -> None:
        """Remember a forward that wrote."""
        self._writing = seconds

    def note_reading(self, num_tokens: int, seconds: float) -> None:
        """Remember a forward that read."""
        self._speed, self._writing = num_tokens / seconds, None
