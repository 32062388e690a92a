"""Exams of what trained tiny checkpoints make: how they are drawn, what has to be right, and what luck would do."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from tests.services.judges import luck

NUM_CANDIDATES = 200  # of which one is asked for
Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Mark:
    """Whether something is right; `asked` is what it was to be, where that is one of a few things."""

    is_right: bool
    asked: str = ""


@dataclass(frozen=True)
class Demand:
    """What is demanded of a property.

    Args:
        least: the part of all marks that has to be right; of whatever is asked for, about a third has to be.
        chance: the most that a model may hope for at each of them which knows all but this; nothing where that is to
            make always what is asked for most often.
    """

    least: float
    chance: float | None

    def num_needed(self, marks: Sequence[Mark]) -> int:
        """Return how many of them have to be right."""
        return round(self.least * len(marks))

    def luck(self, marks: Sequence[Mark]) -> float:
        """Return how likely a model passes which knows all but this."""
        ((_, most),) = Counter(mark.asked for mark in marks).most_common(1)
        chance = most / len(marks) if self.chance is None else self.chance
        return luck(self.num_needed(marks), len(marks), chance)

    def complaint(self, marks: Sequence[Mark]) -> str:
        """Say what is not right often enough; nothing where all is."""
        found = [("all", marks, self.num_needed(marks))]
        for asked in sorted({mark.asked for mark in marks} - {""}):
            of_it = [mark for mark in marks if mark.asked == asked]
            found.append((asked, of_it, round(len(of_it) / 3)))
        return ", ".join(
            f"{asked}: {num} of {len(judged)}"
            for asked, judged, needed in found
            if (num := sum(mark.is_right for mark in judged)) < needed
        )


@dataclass(frozen=True)
class Exam(Demand):
    """A property, and what is judged of it in each thing that is made."""

    marks: Callable[..., Sequence[Mark]]


def sit(exams: Mapping[str, Exam], made: Iterable[tuple[Any, ...]]) -> dict[str, list[Mark]]:
    """Judge all that was made, by every exam."""
    judged = list(made)
    return {name: [mark for each in judged for mark in exam.marks(*each)] for name, exam in exams.items()}


def failed(found: Mapping[str, Sequence[Mark]], demands: Mapping[str, Demand]) -> dict[str, str]:
    """Name the exams that are not passed, and say why."""
    return {name: why for name, marks in found.items() if (why := demands[name].complaint(marks))}


def evenly(made_up: Iterator[Asked], traits: Callable[[Asked], Sequence[str]], number: int) -> list[Asked]:
    """Draw of what is made up so that each trait comes as often as others of its sort, and nothing twice."""
    drawn, taken = dict[Sequence[str], Asked](), Counter[str]()
    while len(drawn) < number:
        candidates = {tuple(traits(one)): one for one in islice(made_up, NUM_CANDIDATES)}
        rarest = min(
            candidates.keys() - drawn.keys(), key=lambda names: (sum(taken[name] ** 2 for name in names), names)
        )
        drawn[rarest] = candidates[rarest]
        taken.update(rarest)
    return list(drawn.values())
