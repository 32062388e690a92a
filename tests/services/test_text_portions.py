"""How much of prompts is read at once: little while somebody writes, much else."""

import pytest

from services.text.portions import FIRST, LONGEST, MOST, PATIENCE, Portions
from services.text.rows import STRIDE


@pytest.fixture
def portions() -> Portions:
    return Portions()


def read(portions: Portions, speed: float, fixed: float = 0.0, writing: float | None = None, rounds: int = 30) -> None:
    """Read in portions at `fixed` seconds and `1 / speed` for each token, taking turns with who writes."""
    for _ in range(rounds):
        if writing is not None:
            portions.note_writing(writing)
        portions.note_reading(portions.most, fixed + portions.most / speed)
    if writing is not None:
        portions.note_writing(writing)


def test_nothing_is_known_at_first(portions: Portions) -> None:
    assert portions.most == FIRST


def test_while_nobody_writes_a_forward_takes_a_second(portions: Portions) -> None:
    read(portions, speed=100)
    assert portions.most == pytest.approx(100 * LONGEST, abs=STRIDE / 2)


def test_who_writes_waits_for_so_many_of_his_own_forwards(portions: Portions) -> None:
    read(portions, speed=100, writing=0.1)
    assert portions.most == pytest.approx(100 * 0.1 * PATIENCE, abs=STRIDE / 2)


def test_what_a_forward_takes_whatever_its_size_counts(portions: Portions) -> None:
    read(portions, speed=100, fixed=0.1, writing=0.1, rounds=100)
    assert portions.most == pytest.approx(100 * (0.1 * PATIENCE - 0.1), abs=STRIDE)


def test_a_short_prompt_does_not_make_the_next_ones_portions_small(portions: Portions) -> None:
    read(portions, speed=100, writing=0.1)
    usual = portions.most
    portions.note_reading(1, 0.1)
    portions.note_writing(0.1)
    assert portions.most >= usual - STRIDE


def test_there_are_always_some(portions: Portions) -> None:
    read(portions, speed=100, fixed=5.0, writing=0.001, rounds=200)
    assert portions.most == STRIDE
    read(portions, speed=1e9)
    assert portions.most == MOST


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ((10, 10), [10, 10]),
        ((40,), [40]),  # a rest of 8 would need a forward of its own
        ((50,), [32]),
        ((20, 20), [20, 8]),
        ((20, 40, 9), [20, 8, 0]),
        ((20, 15), [20, 15]),
        ((32, 5), [32, 0]),
        ((40, 5), [40, 0]),
    ],
)
def test_the_first_come_first(portions: Portions, lengths: tuple[int, ...], parts: list[int]) -> None:
    assert portions.most == FIRST == 32
    assert portions.cut(lengths) == parts
