"""Prompts and answers in the usage log: only where the operator wants them, cut short, and without secrets."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.settings import Settings
from gateway.usage.content import ContentPolicy, told
from tests.gateway.conftest import Gateway, Workers

CHAT = {"messages": [{"role": "user", "content": "I am ann@example.org"}]}
MAIL = "bob.smith+x@mail.example.org"

Start = Callable[..., Gateway]


def chunk(text: str, index: int = 0) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "delta": {"content": text}}]}).encode() + b"\n\n"


def row_of(
    gateway: Gateway, method: str = "POST", path: str = "/v1/chat/completions", **request: Any
) -> dict[str, Any]:
    """The row of one request."""
    assert gateway.client.request(method, path, **request).is_success
    (row,) = gateway.rows()
    return row


def test_nothing_is_kept_unless_the_operator_says_so(start: Start, workers: Workers) -> None:
    workers.streams_once(b"Hello")
    row = row_of(start(), json=CHAT)

    assert (row["prompt"], row["output"]) == (None, None)


def test_prompts_alone(start: Start, workers: Workers) -> None:
    workers.streams_once(b"Hello")
    row = row_of(start(log_content="prompts"), json=CHAT)

    assert json.loads(row["prompt"]) == {"messages": [{"role": "user", "content": "I am [redacted]"}]}
    assert row["output"] is None


def test_a_prompt_in_the_query(start: Start) -> None:
    row = row_of(start(log_content="all"), "GET", "/generate/image", params={"prompt": "A cat of a@b.org", "seed": 3})

    assert (row["prompt"], row["output"]) == ("A cat of [redacted]", None)  # a picture is no text


def test_what_is_no_generation_is_not_kept(start: Start) -> None:
    row = row_of(start(log_content="all"), "GET", "/livez", params={"prompt": "mine"})

    assert (row["prompt"], row["output"]) == (None, None)


def test_a_secret_that_lies_across_events_is_found(start: Start, workers: Workers) -> None:
    pieces = [MAIL[place : place + 3] for place in range(0, len(MAIL), 3)]
    workers.streams_once(chunk("Ask "), *map(chunk, pieces), chunk(" now."), b"data: [DONE]\n\n")
    row = row_of(start(log_content="all"), json=CHAT)

    assert row["output"] == "Ask [redacted] now."


def test_answers_are_told_apart_and_what_is_cut_off_is_left_out() -> None:
    stream = chunk("a", 0) + chunk("x", 1) + chunk("b", 0) + b"data: 5\n\nnonsense\ndata: {}\n" + chunk("y", 1)[:-20]
    assert told(stream) == "ab\nx"


def test_the_events_of_responses_are_read() -> None:
    events = [
        {"type": "response.output_text.delta", "delta": "Hel"},
        {"type": "response.output_text.delta", "delta": "lo"},
    ]
    done = {"type": "response.output_text.done", "text": "Hello"}
    stream = b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in [*events, done])
    assert told(stream) == "Hello"


@pytest.mark.parametrize(
    "secret",
    [
        MAIL,
        "sk-proj-abcdefghijklmnop",
        "ghp_abcdefghijklmnop1234",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
        "Bearer abcdefgh12345",
        'api_key="hunter2hunter2"',
        "password: correcthorse",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "378282246310005",
        "ACME-123",
    ],
)
@pytest.mark.parametrize("frame", ["{}", "It is {}, really.", '{{"content": "{}"}}'])
def test_secrets_are_taken_out(secret: str, frame: str) -> None:
    cleaned = ContentPolicy("all", patterns=(r"ACME-\d+",)).clean(frame.format(secret))

    assert "[redacted]" in cleaned
    assert secret not in cleaned
    assert not any(
        part in cleaned for part in secret.split() if len(part) > 6 and part.lower() not in "password:bearer"
    )


@pytest.mark.parametrize("text", ["A cat on 3 mats in 2026.", "1,234 tokens", "the password is forgotten", "a @ b"])
def test_ordinary_text_stays(text: str) -> None:
    assert ContentPolicy("all").clean(text) == text


@given(before=st.integers(0, 60), max_chars=st.integers(1, 60))
def test_no_secret_is_cut_in_two(before: int, max_chars: int) -> None:
    cleaned = ContentPolicy("all", max_chars).clean(" " * before + MAIL + " end")

    assert len(cleaned) <= max_chars
    assert "bob" not in cleaned


def test_a_long_answer_is_cut_short(start: Start, workers: Workers) -> None:
    workers.streams_once(*[b"word " * 1000] * 20)
    row = row_of(start(log_content="all", log_content_chars=12), "GET", "/generate/text", params={"prompt": "x" * 99})

    assert (row["prompt"], row["output"]) == ("x" * 12, "word word wo")


@pytest.mark.parametrize("text", ["a" * 65_000 + "!", "eyJ-" * 16_000, "token" * 13_000, "b@" * 32_000])
def test_no_text_keeps_the_gateway_busy(text: str) -> None:
    """Which `re` would be with the operator's pattern, and was with one of ours."""
    assert ContentPolicy("all", 65_536, patterns=("(a+)+$",)).clean(text) == text


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?<=a)b"])
def test_what_is_no_pattern_is_refused_at_the_start(pattern: str) -> None:
    with pytest.raises(ValidationError, match="is no pattern of RE2"):
        Settings(redact_patterns=(pattern,))
