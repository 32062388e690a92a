"""Texts in the shapes of OpenAI's API."""

import json
from typing import Any

import pytest

from services.encoders import Encoder
from services.engine.events import Done, Started
from services.errors import QueueFull
from services.text.answers import ChatShape, ChunkEncoder, CompletionShape, DocumentEncoder, Shape, TextEncoder
from services.text.pieces import Call, Piece, Token

DONE = Done({"prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": 4}, "length")
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 2},
}
TOKEN = Token("Hel", [72, 101, 108], -0.5, [Token("Hel", [72, 101, 108], -0.5), Token("\ufffd", [240], -float("inf"))])
PIECES = [
    Piece(0, "Hel", [TOKEN]),
    Piece(1, "世"),
    Piece(0, "lo", finish_reason="stop"),
    Piece(1, "", finish_reason="length"),
]
SHAPES = [ChatShape("tiny"), CompletionShape("tiny")]

by_shape = pytest.mark.parametrize("shape", SHAPES, ids=["chat", "completion"])


def encoded(encoder: Encoder, *pieces: Piece) -> bytes:
    return b"".join([*(encoder.add(piece) for piece in pieces), encoder.close(DONE)])


def events(data: bytes) -> list[Any]:
    """Read a stream that must end with `[DONE]`."""
    *frames, last, rest = data.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def test_bare_text_is_utf8_as_it_is() -> None:
    assert encoded(TextEncoder(), Piece(0, "Grüß "), Piece(0, "世界 🐈")).decode() == "Grüß 世界 🐈"


def test_a_chat_completion_is_openais_shape() -> None:
    document = json.loads(encoded(DocumentEncoder(ChatShape("tiny")), *PIECES))
    likeliest = [
        {"token": "Hel", "bytes": [72, 101, 108], "logprob": -0.5},
        {"token": "\ufffd", "bytes": [240], "logprob": -9999.0},
    ]
    shown = {"token": "Hel", "bytes": [72, 101, 108], "logprob": -0.5, "top_logprobs": likeliest}

    assert document["id"].startswith("chatcmpl-")
    assert isinstance(document["created"], int)
    assert (document["object"], document["model"], document["usage"]) == ("chat.completion", "tiny", USAGE)
    assert document["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "logprobs": {"content": [shown]},
            "finish_reason": "stop",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": "世"},
            "logprobs": None,
            "finish_reason": "length",
        },
    ]


def test_a_completion_is_openais_shape() -> None:
    document = json.loads(encoded(DocumentEncoder(CompletionShape("tiny")), *PIECES))
    logprobs = {
        "tokens": ["Hel"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"Hel": -0.5, "bytes:\\xf0": -9999.0}],
        "text_offset": [0],
    }

    assert document["id"].startswith("cmpl-")
    assert (document["object"], document["usage"]) == ("text_completion", USAGE)
    assert document["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": logprobs, "finish_reason": "stop"},
        {"index": 1, "text": "世", "logprobs": None, "finish_reason": "length"},
    ]


def test_chunks_of_a_chat_put_together_are_the_messages() -> None:
    chunks = events(encoded(ChunkEncoder(ChatShape("tiny"), includes_usage=False), *PIECES))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]

    assert {(chunk["object"], chunk["id"], chunk["model"]) for chunk in chunks} == {
        ("chat.completion.chunk", chunks[0]["id"], "tiny")
    }
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "世"},
        {"content": "lo"},
        {},
    ]
    assert [choice["index"] for choice in choices] == [0, 1, 0, 1]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop", "length"]
    assert "usage" not in chunks[-1]


def test_chunks_of_a_completion_put_together_are_the_text() -> None:
    pieces = [Piece(0, "Hel"), Piece(1, "x"), Piece(0, "p")]
    chunks = events(encoded(ChunkEncoder(CompletionShape("tiny"), includes_usage=False), *pieces))

    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "x", "p"]


def test_nothing_is_known_about_the_first_token_of_a_prompt() -> None:
    pieces = [Piece(0, "Hello", [Token("He", [72, 101], None), Token("llo", [108, 108, 111], -1.0)]), Piece(0, "!", [])]
    document = json.loads(encoded(DocumentEncoder(CompletionShape("tiny")), *pieces))

    assert document["choices"][0]["text"] == "Hello!"
    assert document["choices"][0]["logprobs"] == {
        "tokens": ["He", "llo"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"llo": -1.0}],
        "text_offset": [0, 2],
    }


def test_tokens_begin_at_the_same_place_in_a_stream_and_in_the_whole_text() -> None:
    help_, less = Token("Help", [72, 101, 108, 112], -0.5), Token("less", [108, 101, 115, 115], -0.5)
    pieces = [Piece(0, "He", [help_]), Piece(1, "Help", [help_]), Piece(0, "lpl", [less]), Piece(0, "ess", [less])]
    document = json.loads(encoded(DocumentEncoder(CompletionShape("tiny")), *pieces))
    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in events(encoded(ChunkEncoder(CompletionShape("tiny"), includes_usage=False), *pieces)):
        (choice,) = chunk["choices"]
        offsets[choice["index"]] += choice["logprobs"]["text_offset"]

    assert offsets == {0: [0, 4, 8], 1: [0]}
    assert [choice["logprobs"]["text_offset"] for choice in document["choices"]] == list(offsets.values())


@by_shape
def test_usage_comes_last_where_it_is_asked_for(shape: Shape) -> None:
    chunks = events(encoded(ChunkEncoder(shape, includes_usage=True), *PIECES))

    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], USAGE)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@by_shape
def test_a_stream_tells_of_an_error_and_of_nothing_else(shape: Shape) -> None:
    encoder = ChunkEncoder(shape, includes_usage=False)
    told = encoder.tell(QueueFull("later", retry_after=3))

    assert encoder.tell(Started()) == b""
    assert json.loads(told.removeprefix(b"data: "))["error"]["code"] == "queue_full"
    assert told.endswith(b"\n\n")


def test_why_an_answer_ended_comes_behind_its_calls() -> None:
    piece = Piece(0, "", calls=(Call(0, "call_1", "weather", "{}"),), finish_reason="tool_calls")
    chunks = events(encoded(ChunkEncoder(ChatShape("tiny"), includes_usage=False), piece))
    choices = [chunk["choices"][0] for chunk in chunks]

    assert [("tool_calls" in each["delta"], each["finish_reason"]) for each in choices] == [
        (True, None),
        (False, "tool_calls"),
    ]
