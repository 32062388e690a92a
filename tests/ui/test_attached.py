"""The pictures that jobs were made of."""

from ui.attached import Attached
from ui.bodies import Picture


def picture(num_bytes: int) -> Picture:
    return Picture("a.png", "image/png", bytes(num_bytes))


def test_the_oldest_make_room() -> None:
    kept = Attached(max_bytes=10)
    for number, size in enumerate((4, 4, 2, 3)):
        kept.keep(f"job_{number}", picture(size))

    assert kept.of("job_0") is None
    assert [kept.of(f"job_{number}") for number in (1, 2, 3)] == [picture(4), picture(2), picture(3)]


def test_what_is_too_large_alone_is_not_kept_and_leaves_room() -> None:
    kept = Attached(max_bytes=10)
    kept.keep("job_1", picture(11))
    kept.keep("job_2", picture(10))

    assert (kept.of("job_1"), kept.of("job_2")) == (None, picture(10))
