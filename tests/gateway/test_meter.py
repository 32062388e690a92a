"""What providers say of their answers is found wherever the bytes are cut, and nothing that looks like it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.meter import TAIL, Meter

CHAT = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "prompt_tokens_details": {"cached_tokens": 4}}
UNITS = {"tokens": 18, "prompt_tokens": 11, "cached_tokens": 4, "completion_tokens": 7}
RESPONSE = {"input_tokens": 11, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 4}, "total_tokens": 18}
FAKE = '"usage": {"prompt_tokens": 1, "completion_tokens": 1}'
DELTA = {"choices": [{"delta": {"content": FAKE}, "index": 0}], "usage": None}
FILTERS = {"choices": [], "prompt_filter_results": [FAKE]}


def event(data: Any, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(data)}{end}".encode()


def watched(body: bytes, cuts: list[int], *, hides: bool = False) -> tuple[bytes, Any]:
    """Let a body pass in pieces; what the caller sees, and what it took."""
    meter, places = Meter(hides=hides), [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    seen = b"".join(meter.watch(body[start:end]) for start, end in pairwise(places))
    return seen + meter.end(), meter.units


@pytest.mark.parametrize(
    ("body", "units"),
    [
        ({"choices": [{"message": {"content": FAKE}}], "usage": CHAT, "system_fingerprint": "}"}, UNITS),
        ({"object": "response", "usage": RESPONSE, "metadata": {"usage": "none"}}, UNITS),
        ({"usage": {"prompt_tokens": 3, "prompt_tokens_details": None}}, {"tokens": 3, "prompt_tokens": 3}),
        ({"usage": CHAT, "tools": [{"parameters": {"usage": {"type": "string"}}}]}, UNITS),
        ({"usage": CHAT, "tools": [{"parameters": {"usage": {"prompt_tokens": 0}}}]}, UNITS),
        ({"tools": [{"parameters": {"usage": {"prompt_tokens": 0}}}]}, None),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": 5}}, None),
        ({"usage": {"prompt_tokens": True, "completion_tokens": "many"}}, None),
        ({"usage": None}, None),
        ({"choices": [FAKE]}, None),
    ],
)
def test_an_answer_says_what_it_took(body: Any, units: dict[str, int] | None) -> None:
    found = watched(json.dumps(body).encode(), [])[1]
    assert (found and {unit: number for unit, number in found.items() if number}) == units


def test_what_a_caller_has_sent_is_no_usage_where_it_comes_back() -> None:
    """Servers of `/v1/responses` say the request again in their first event; this caller leaves before the last."""
    asked = {"tools": [{"parameters": {"properties": {"usage": {"input_tokens": 0, "output_tokens": 0}}}}]}
    created = event({"type": "response.created", "response": {**asked, "usage": None}})
    delta = event({"type": "response.output_text.delta", "delta": "Hi"})
    done = event({"type": "response.completed", "response": {"usage": RESPONSE, **asked}})
    meter = Meter()
    meter.watch(created + delta)
    assert meter.units is None
    meter.watch(done[:-20])
    assert meter.units is None
    meter.watch(done[-20:])
    assert meter.units == UNITS


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_long_answer_tells_it_at_its_end(is_stream: bool) -> None:
    """Of which the beginning is not kept."""
    long = {"response": {"output": "x" * 3 * TAIL, "usage": RESPONSE}}
    body = event(long) if is_stream else json.dumps(long).encode()
    meter = Meter()
    meter.watch(body[:TAIL])
    meter.watch(body[TAIL:])
    assert meter.units is None
    meter.end()
    assert meter.units == UNITS


@given(st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_a_streams_usage_is_read_and_not_shown_where_only_we_asked(cuts: list[int], end: str) -> None:
    before = event(FILTERS, end) + event(DELTA, end) + b": ping" + end.encode()
    last = event({"choices": [], "usage": CHAT}, end)
    done = f"data: [DONE]{end}".encode()
    assert watched(before + last + done, cuts, hides=True) == (before + done, UNITS)
    assert watched(before + last + done, cuts) == (before + last + done, UNITS)
    assert watched(before, cuts, hides=True) == (before, None)


def test_an_answer_without_end_takes_no_memory_and_is_not_held_back() -> None:
    meter = Meter(hides=True)
    seen = sum(len(meter.watch(b"x" * 1000)) for _ in range(1000))
    assert seen + len(meter.end()) == 1_000_000
    assert len(meter.end()) <= TAIL
    assert len(meter._tail) <= 2 * TAIL
