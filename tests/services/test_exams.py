"""Exams ask for everything about as often, and nothing that is never right passes."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.services.exams import Demand, Mark, evenly, failed

COLOURS, KINDS = ("red", "green", "blue", "white"), ("circle", "square", "triangle")


def made_up() -> Iterator[tuple[str, str]]:
    """Mostly red circles."""
    dice = random.Random(1)
    while True:
        yield dice.choices(COLOURS, (9, 1, 1, 1))[0], dice.choices(KINDS, (9, 1, 1))[0]


def test_everything_is_drawn_as_often_as_others_and_nothing_twice() -> None:
    drawn = evenly(made_up(), lambda one: one, 8)
    colours, kinds = (Counter(column) for column in zip(*drawn, strict=True))

    assert len(set(drawn)) == len(drawn)
    assert {colours[colour] for colour in COLOURS} == {2}
    assert {kinds[kind] for kind in KINDS} == {2, 3}


def marks(num_squares: int, right: int) -> dict[str, list[Mark]]:
    """Circles that are all right, and squares of which only some are."""
    squares = [Mark(number < right, "square") for number in range(num_squares)]
    return {"kinds": [Mark(is_right=True, asked="circle")] * (30 - num_squares) + squares}


@pytest.mark.parametrize(
    ("num_squares", "right", "why"),
    [(3, 0, "square: 0 of 3"), (3, 1, ""), (15, 4, "all: 19 of 30, square: 4 of 15"), (15, 12, "")],
)
def test_what_is_mostly_wrong_fails_however_right_the_rest_is(num_squares: int, right: int, why: str) -> None:
    assert failed(marks(num_squares, right), {"kinds": Demand(0.9, None)}) == ({"kinds": why} if why else {})


def test_luck_knows_what_is_asked_for_most_often() -> None:
    even, uneven = marks(15, 0)["kinds"], marks(6, 0)["kinds"]

    assert Demand(0.9, None).luck(even) == pytest.approx((4060 + 435 + 30 + 1) / 2**30)
    assert Demand(0.9, None).luck(uneven) > Demand(0.9, None).luck(even)
    assert Demand(0.9, 0.5).luck(uneven) == Demand(0.9, None).luck(even)
