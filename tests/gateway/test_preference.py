"""What a `Prefer` header says, in every way that RFC 7240 lets it be written."""

import pytest

from gateway.preference import MAX_WAIT, prefers_job, seconds_to_wait


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("respond-async, wait=10", 10),
        ("Respond-Async; Wait=10", 10),
        ('respond-async,wait = "10"', 10),
        ("respond-async, wait=100000", MAX_WAIT),
        ("respond-async, wait=10, wait=5", 5),
        ("respond-async, wait=-1", 0),
        ('respond-async, wait="10', 0),
        ("respond-async", 0),
    ],
)
def test_how_long_a_client_would_wait(header: str, seconds: int) -> None:
    scope = {"type": "http", "headers": [(b"prefer", header.encode())]}

    assert prefers_job(scope)
    assert seconds_to_wait(scope) == seconds


@pytest.mark.parametrize("header", ["", "wait=10", "return=minimal", "respond-asynchronously"])
def test_who_does_not_say_so_wants_no_job(header: str) -> None:
    assert not prefers_job({"type": "http", "headers": [(b"prefer", header.encode())]})
