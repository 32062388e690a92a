"""What the gateway refuses, as sentences for people."""

import httpx
import pytest

from ui.errors import in_words, problem_of


def refused(status: int, message: str, code: str = "", **headers: str) -> str:
    return str(problem_of(httpx.Response(status, json={"error": {"message": message, "code": code}}, headers=headers)))


def test_how_programs_give_a_key_is_not_said() -> None:
    said = refused(401, "a key is needed: send it as 'Authorization: Bearer atl_...' or as 'x-api-key'")

    assert said == "A key is needed. Give a key that is valid."


def test_of_a_conversation_that_is_too_long_it_is_said_what_helps() -> None:
    assert "begin anew" in refused(400, "it has too many tokens; shorten it", "context_length_exceeded")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "in 5 s"), (99, "in 99 s"), (100, "in 2 minutes"), (6000, "in 2 hours"), (76_739, "in 22 hours")],
)
def test_when_to_try_again_is_said_in_words(seconds: int, words: str) -> None:
    assert in_words(seconds) == words
    assert refused(429, "the budget is used up", **{"retry-after": str(seconds)}).endswith(f"Try again {words}.")
