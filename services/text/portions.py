"""How many tokens of prompts are read in a forward: so few that those who write are not held up long."""

from collections.abc import Sequence

from services.text.rows import STRIDE

MOST = 512
FIRST = 32  # while nothing is known
PATIENCE = 2.5  # how long a forward that reads may take, as a multiple of one that writes
SLACK = 1.3  # rather a little more than a rest that needs a forward of its own
FADING = 0.9  # of what is known by every forward: one of a few tokens says little about one of many
LONGEST = 1.0  # seconds that it may take while nobody writes: who comes or leaves waits for it


class Portions:
    """What forwards took, and what follows from it."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._speed: float | None = None  # tokens a second, of forwards that read
        self._writing: float | None = None  # seconds of the last forward that wrote, if it came after that

    @property
    def most(self) -> int:
        """Tokens that the next forward may read: a multiple of `STRIDE`, lest what is read depend on how it was cut."""
        if self._speed is None:
            return FIRST
        seconds = LONGEST if self._writing is None else PATIENCE * self._writing
        return min(max(round(self._speed * seconds / STRIDE), 1) * STRIDE, MOST)

    def note_writing(self, seconds: float) -> None:
        """Remember a forward that wrote."""
        self._writing = seconds

    def note_reading(self, num_tokens: int, seconds: float) -> None:
        """Remember a forward that read."""
        self._speed = max(num_tokens / seconds, FADING * (self._speed or 0))
        self._writing = None

    def cut(self, lengths: Sequence[int]) -> list[int]:
        """Say how many tokens the next forward reads of each prompt, those first that come first.

        What is not a prompt's rest is a multiple of `STRIDE`.
        """
        room = self.most
        parts = []
        for length in lengths:
            parts.append(length if length <= SLACK * room else room // STRIDE * STRIDE)
            room = max(0, room - parts[-1])
        return parts
