"""The most that a request can use is never less than what it does use."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audio.schema import SpeechRequest
from services.audio.sentences import split_sentences
from services.image.schema import ImageRequest
from services.mesh.schema import MeshRequest
from services.schema import GenerationRequest
from services.text.schema import ChatRequest, CompletionRequest, Message, ResponseRequest
from services.units import MAX_OUTSIDE_TOKENS, OUTSIDE_STEPS, PIECE_SECONDS, most, most_outside
from services.video.schema import VideoRequest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("body", "defaults", "units"),
    [
        (ImageRequest(prompt="x"), {"size": "512x256", "num_inference_steps": 10}, 512 * 256 * 10),
        (ImageRequest(prompt="x", size="64x128", num_inference_steps=3), {"size": "512x512"}, 64 * 128 * 3),
        (ImageRequest(prompt="x"), {}, 2048 * 2048 * 200),
        (VideoRequest(num_frames=14), {"num_frames": 25}, 14),
        (VideoRequest(), {"num_frames": 25}, 25),
        (MeshRequest(prompt="x"), {}, 1),
        (SpeechRequest(input="hello"), {}, PIECE_SECONDS),
    ],
)
def test_media_are_counted_by_what_they_are_made_of(
    body: GenerationRequest, defaults: dict[str, Any], units: float
) -> None:
    assert most(body, defaults) == units


def test_every_answer_may_be_as_long_as_it_is_allowed_to() -> None:
    empty = most(ChatRequest(**CHAT, max_tokens=1), {"max_tokens": 256})
    assert most(ChatRequest(**CHAT, max_tokens=9, n=4), {"max_tokens": 256}) >= empty - 1 + 36
    assert most(ChatRequest(**CHAT), {"max_tokens": 256}) >= 256 + len("hello")
    assert most(ChatRequest(**CHAT, max_completion_tokens=5000), {"max_tokens": 256}) >= 5000
    assert most(ResponseRequest(input="hello", max_output_tokens=5000), {"max_tokens": 256}) >= 5000
    assert most(CompletionRequest(prompt="hello"), {"max_tokens": 100}) in range(105, 300)
    assert most(CompletionRequest(prompt="hello"), {}) >= 131_072
    assert most(CompletionRequest.model_validate({"prompt": ["a", [1, 2]], "n": 3}), {"max_tokens": 100}) >= 600
    assert most(CompletionRequest(prompt="hello", max_tokens=0, echo=True), {"max_tokens": 1000}) in range(5, 200)


@given(
    st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=200), st.integers(1, 20)
)
def test_no_prompt_has_more_tokens_than_bytes(text: str, num_turns: int) -> None:
    """Each turn also has marks of its own in a template: `<|assistant|>`, line feed, `</s>` and line feed."""
    turns = [Message(role="assistant", content=text)] * num_turns
    num_bytes = num_turns * (len(text.encode()) + len("<|assistant|>\n</s>\n")) + len("<|assistant|>\n")
    assert most(ChatRequest(messages=tuple(turns), max_tokens=1), {}) >= num_bytes


@given(st.text(st.sampled_from("ab ,;.!?\n\u3002"), min_size=1, max_size=1000).filter(str.strip))
def test_no_text_is_said_in_more_pieces_than_are_counted(text: str) -> None:
    assert most(SpeechRequest(input=text), {}) >= len(split_sentences(text)) * PIECE_SECONDS


def test_several_pictures_count_several_times() -> None:
    one = ImageRequest(prompt="a", size="64x64", num_inference_steps=3)
    assert most(one.model_copy(update={"n": 4}), {}) == 4 * most(one, {}) == 4 * 64 * 64 * 3


TURNS = [{"role": "user", "content": "hello"}]
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}]


@pytest.mark.parametrize(
    ("body", "least"),
    [
        ({"messages": TURNS, "max_tokens": 9}, 9),
        ({"messages": TURNS}, MAX_OUTSIDE_TOKENS),
        ({"input": "hello", "max_output_tokens": 9}, 9),
        ({"input": "hello", "max_tokens": 9}, MAX_OUTSIDE_TOKENS),  # which no server heeds there
        ({"input": "hello", "messages": [], "max_tokens": 9}, MAX_OUTSIDE_TOKENS),
        ({"prompt": "hello", "max_output_tokens": 9}, MAX_OUTSIDE_TOKENS),
        ({"prompt": ["a", "b"], "max_tokens": 9, "n": 4}, 72),
        ({"messages": PICTURE, "max_tokens": 9}, MAX_OUTSIDE_TOKENS),  # for its 17 bytes
        ({"messages": [{"role": "user", "content": '"type": "image_url"'}], "max_tokens": 9}, 9),
        ({"input": "and then?", "previous_response_id": "resp_1", "max_output_tokens": 9}, MAX_OUTSIDE_TOKENS),
    ],
)
def test_what_a_provider_may_read_and_write_is_counted(body: dict[str, Any], least: int) -> None:
    assert least <= most_outside("text", body) < least + 300


@pytest.mark.parametrize(
    ("task", "body", "units"),
    [
        ("image", {"prompt": "a", "size": "512x256", "n": 3}, 3 * 512 * 256 * OUTSIDE_STEPS),
        ("image", {"prompt": "a", "size": "512x256", "n": "3"}, 3 * 512 * 256 * OUTSIDE_STEPS),  # in a form
        ("image", {"prompt": "a", "size": "auto", "n": "many"}, 1024 * 1024 * OUTSIDE_STEPS),
        ("image", {"prompt": "a", "size": 7, "n": -1}, 1024 * 1024 * OUTSIDE_STEPS),
        ("audio", {"input": "hello"}, PIECE_SECONDS),
        ("audio", {"input": ["hello"]}, PIECE_SECONDS),
    ],
)
def test_what_a_provider_makes_counts_as_if_we_had_made_it(task: str, body: dict[str, Any], units: float) -> None:
    assert most_outside(task, body) == units
