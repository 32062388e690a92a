"""When a server is left alone, and when it is tried again."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker import NUM_FAILURES, REST_SECONDS, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(NUM_FAILURES):
        assert breaker.admit()
        breaker.failed()
    return breaker


def test_it_opens_after_failures_in_a_row_and_says_how_long() -> None:
    clock = Clock()
    breaker = broken(clock)
    assert not breaker.admit()
    clock.now += REST_SECONDS - 1
    assert (breaker.admit(), breaker.seconds_left) == (False, 1.0)


def test_one_at_a_time_tries_it_then() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += REST_SECONDS
    assert [breaker.admit() for _ in range(3)] == [True, False, False]


def test_a_success_closes_it() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += REST_SECONDS
    assert breaker.admit()
    breaker.succeeded()
    assert [breaker.admit() for _ in range(3)] == [True, True, True]


def test_an_attempt_that_fails_leaves_it_open() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += REST_SECONDS
    assert breaker.admit()
    breaker.failed()
    assert not breaker.admit()


def test_an_attempt_that_never_ends_does_not_leave_it_open_for_ever() -> None:
    """Its caller may leave."""
    clock = Clock()
    breaker = broken(clock)
    clock.now += REST_SECONDS
    assert breaker.admit()
    clock.now += REST_SECONDS
    assert breaker.admit()


@given(st.lists(st.booleans()))
def test_only_failures_in_a_row_open_it(outcomes: list[bool]) -> None:
    breaker, in_a_row = Breaker(Clock()), 0
    for is_success in outcomes:
        if not breaker.admit():
            break
        breaker.succeeded() if is_success else breaker.failed()
        in_a_row = 0 if is_success else in_a_row + 1
        assert (breaker.seconds_left > 0) == (in_a_row >= NUM_FAILURES)
