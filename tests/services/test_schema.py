"""The contracts: what passes is safe to hand on, and what does not is told in a sentence that names the field."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.audio.schema import SpeechRequest
from services.image.schema import ImageJob, ImageRequest
from services.mesh.schema import MeshJob, MeshRequest
from services.schema import Body, GenerationRequest, complete, envelope, explain, parse_size
from services.text.schema import MAX_CHARACTERS, ChatRequest, CompletionRequest, Message, ResponseRequest
from services.video.schema import VideoRequest

REQUESTS = (ChatRequest, CompletionRequest, ResponseRequest, SpeechRequest, ImageRequest, VideoRequest, MeshRequest)
TEXTS = st.text(st.characters(codec=None, exclude_categories=[]), max_size=200)  # halves of characters as well
JARGON = re.compile(
    r"input|should|valid |validation|dict|instance|pydantic|value error|pars|type=|tuple|int\b|str\b", re.I
)


def is_accepted(body: type[Body], value: Mapping[str, Any]) -> bool:
    try:
        body.model_validate(value)
    except ValidationError:
        return False
    return True


def refused(body: type[Body], value: Mapping[str, Any]) -> list[Any]:
    """What is wrong with `value`; nothing if it passes."""
    try:
        body.model_validate(value)
    except ValidationError as refusal:
        return refusal.errors()
    return []


def complaint(body: type[Body], value: Any) -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as refusal:
        body.model_validate_json(value) if isinstance(value, str) else body.model_validate(value)
    return explain(refusal.value.errors()[0])


# --- texts ---


@settings(deadline=None)
@given(text=TEXTS)
def test_any_text_that_passes_is_safe_to_hand_on(text: str) -> None:
    if is_accepted(ImageRequest, {"prompt": text}):
        assert text.encode().decode() == text
        assert text.strip()
        assert not any(
            unicodedata.category(character) in {"Cc", "Cs"} for character in text if character not in "\n\r\t"
        )
        assert "\ufffd" not in text
        assert ImageRequest.model_validate_json(ImageRequest(prompt=text).model_dump_json()).prompt == text


@pytest.mark.parametrize(
    "text", ["a", "Grüß Gott", "世界", "🐈‍⬛", "a\tb\r\nc", "e\u0301", "\u05e9\u05dc\u05d5\u05dd", "x\u00a0y", "5"]
)
def test_what_people_type_passes(text: str) -> None:
    assert is_accepted(ImageRequest, {"prompt": text})
    assert is_accepted(SpeechRequest, {"input": text})
    assert is_accepted(ChatRequest, {"messages": [{"role": "user", "content": text}]})


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u00a0\u3000", "\u200b", "\u2028\u2029\ufeff"])
def test_what_nobody_can_see_is_refused(text: str) -> None:
    message, field = complaint(ImageRequest, {"prompt": text})

    assert field == "prompt"
    assert message in {"prompt: must not be empty", "prompt: must have at least 1 character"}


@settings(deadline=None)
@given(text=st.text(max_size=20), bad=st.sampled_from([*map(chr, range(9)), "\x0b", "\x0c", "\x7f", "\x9b", "\ufffd"]))
def test_control_characters_are_refused_wherever_they_are(text: str, bad: str) -> None:
    for prompt in (bad + text, text + bad, f"a{bad}{text}"):
        message, field = complaint(ImageRequest, {"prompt": prompt})
        assert field == "prompt"
        assert bad not in message


def test_halves_of_characters_are_refused() -> None:
    assert complaint(ImageRequest, {"prompt": "a\ud83d"})[1] == "prompt"
    assert complaint(ImageRequest, '{"prompt": "a\\ud83d"}') == ("the body must be JSON", None)


@pytest.mark.parametrize(
    ("body", "field", "longest"),
    [(ImageRequest, "prompt", 2000), (MeshRequest, "prompt", 2000), (SpeechRequest, "input", 4096)],
)
def test_a_text_has_a_longest_length(body: type[Body], field: str, longest: int) -> None:
    assert is_accepted(body, {field: "a" * longest})
    assert complaint(body, {field: "a" * (longest + 1)}) == (f"{field}: must have at most {longest} characters", field)


def test_a_chat_has_a_longest_length_too() -> None:
    def chat(*lengths: int) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "a" * length} for length in lengths]}

    assert is_accepted(ChatRequest, chat(MAX_CHARACTERS))
    assert complaint(ChatRequest, chat(MAX_CHARACTERS, 1))[0] == (
        f"messages: must have at most {MAX_CHARACTERS} characters together, not {MAX_CHARACTERS + 1}"
    )
    assert complaint(ChatRequest, chat(MAX_CHARACTERS + 1))[1] == "messages.0.content"
    assert is_accepted(ChatRequest, chat(*[1] * 256))
    assert complaint(ChatRequest, chat(*[1] * 257))[1] == "messages"


# --- numbers ---


@settings(deadline=None)
@given(width=st.integers(0, 3000), height=st.integers(0, 3000))
def test_a_size_is_divisible_by_eight_and_affordable(width: int, height: int) -> None:
    fits = all(side % 8 == 0 and 64 <= side <= 2048 for side in (width, height))

    assert is_accepted(ImageRequest, {"prompt": "a", "size": f"{width}x{height}"}) is fits


@pytest.mark.parametrize(
    "size",
    ["", "64", "64x", "x64", "64X64", "64x64x64", " 64x64", "64x64\n", "064x64", "-64x64", "+64x64", "6_4x64",
     "64.0x64", "1e2x64", "64 x 64", "\u0666\u0664x64", "999999x64", 64, [64, 64]],
)  # fmt: skip
def test_a_size_is_written_in_one_way(size: Any) -> None:
    assert complaint(VideoRequest, {"size": size})[1] == "size"


def test_a_size_is_read_as_width_and_height() -> None:
    assert parse_size("512x384") == (512, 384)


@settings(deadline=None)
@given(seed=st.integers(-(2**70), 2**70))
@example(seed=0)
@example(seed=-1)
@example(seed=2**53 - 1)
@example(seed=2**53)
def test_a_seed_survives_every_json_reader(seed: int) -> None:
    is_in_range = 0 <= seed < 2**53

    assert is_accepted(ImageRequest, {"prompt": "a", "seed": seed}) is is_in_range
    if is_in_range:
        assert int(float(seed)) == seed  # a reader that has nothing but doubles


@pytest.mark.parametrize(
    ("body", "field", "good", "bad"),
    [
        (ImageRequest, "num_inference_steps", [1, 200], [0, -1, 201, 10**6, 1.5, "x"]),
        (ImageRequest, "guidance_scale", [0, 50], [-0.1, 50.1, float("nan"), float("inf"), "x"]),
        (VideoRequest, "num_frames", [1, 161], [0, -1, 162, 10**6]),
        (VideoRequest, "fps", [1, 30], [0, 31]),
        (VideoRequest, "motion_bucket_id", [1, 255], [0, 256]),
        (MeshRequest, "num_inference_steps", [2, 200], [1, 0, 201]),
        (MeshRequest, "grid_size", [8, 192], [7, 193]),
        (ChatRequest, "max_tokens", [1, 131_072], [0, 131_073]),
        (ChatRequest, "temperature", [0, 1e-300, 2], [-0.1, 2.1, float("nan")]),
        (ChatRequest, "top_p", [1e-300, 1], [0, 1.1, float("nan")]),
        (ChatRequest, "top_k", [1, 1000], [0, 1001]),
    ],
)  # fmt: skip
def test_a_number_has_its_range(body: type[Body], field: str, good: list[Any], bad: list[Any]) -> None:
    least = MINIMAL[body]
    for value in good:
        assert is_accepted(body, {**least, field: value}), value
    for value in bad:
        message, named = complaint(body, {**least, field: value})
        assert named == field
        assert message.startswith(f"{field}: must be ")


# --- sentences ---

MINIMAL: dict[type[Body], dict[str, Any]] = {
    ChatRequest: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionRequest: {"prompt": "Hi"},
    ResponseRequest: {"input": "Hi"},
    SpeechRequest: {"input": "Hi"},
    ImageRequest: {"prompt": "a cat"},
    VideoRequest: {},
    MeshRequest: {"prompt": "a cat"},
}
PRIVATE = "pr1v4te"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(PRIVATE) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), values),
    max_leaves=5,
)


@pytest.mark.parametrize("body", REQUESTS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_whatever_comes_the_complaint_is_a_sentence_without_jargon(body: type[Body], data: st.DataObject) -> None:
    fields = st.sampled_from([*body.model_fields, "unknown"])
    value = {**MINIMAL[body], **data.draw(st.dictionaries(fields, VALUES, min_size=1, max_size=3))}
    for error in refused(body, value):
        message, field = explain(error)
        assert not JARGON.search(message.removeprefix(f"{field}: ")), message
        assert PRIVATE not in message
        assert field is None or (message.startswith(f"{field}: ") and field.split(".")[0] in value)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", "the body must be JSON"),
        ("{", "the body must be JSON"),
        ("[]", "the body must be an object"),
        ("{}", "prompt: is required"),
        ('{"prompt": 5}', "prompt: must be a string"),
        ('{"prompt": null}', "prompt: must be a string"),
        ('{"prompt": "a", "frames": 2}', "frames: there is no such parameter here"),
        ('{"prompt": "a", "num_inference_steps": "many"}', "num_inference_steps: must be a whole number"),
        ('{"prompt": "a", "num_inference_steps": 0}', "num_inference_steps: must be greater than or equal to 1"),
        ('{"prompt": "a", "guidance_scale": []}', "guidance_scale: must be a number"),
        ('{"prompt": "a", "size": "large"}', "size: must be width x height in pixels, such as 512x512"),
        ('{"prompt": "a", "size": "65x64"}', "size: width and height must be divisible by 8"),
    ],
)
def test_a_complaint_says_what_to_change(body: str, sentence: str) -> None:
    assert complaint(ImageRequest, body)[0] == sentence


def test_a_complaint_names_a_field_inside_another() -> None:
    message, field = complaint(ChatRequest, {"messages": [{"role": "robot", "content": "Hi"}]})

    assert field == "messages.0.role"
    assert message == "messages.0.role: must be 'system', 'developer', 'user', 'assistant' or 'tool'"


@pytest.mark.parametrize("body", REQUESTS)
def test_a_field_that_is_not_known_is_an_error_and_not_silence(body: type[Body]) -> None:
    assert is_accepted(body, MINIMAL[body])
    assert complaint(body, {**MINIMAL[body], "stepz": 3})[0] == "stepz: there is no such parameter here"


def test_what_a_caller_said_stays_out_of_the_log() -> None:
    with pytest.raises(ValidationError) as refusal:
        ChatRequest.model_validate({"messages": [{"role": "user", "content": PRIVATE + "\0"}], "seed": PRIVATE})

    assert PRIVATE not in str(refusal.value)  # which BentoML logs


@pytest.mark.parametrize("body", REQUESTS)
def test_a_request_does_not_change_any_more(body: type[Body]) -> None:
    with pytest.raises(ValidationError):
        body.model_validate(MINIMAL[body]).seed = 1  # type: ignore[attr-defined]


# --- meshes ---


@pytest.mark.parametrize("fields", [{}, {"prompt": "a", "image": "AAAA"}, {"prompt": None, "image": None}])
def test_a_mesh_comes_from_a_text_or_a_picture(fields: dict[str, Any]) -> None:
    assert complaint(MeshRequest, fields) == ("give either 'prompt' or 'image'", None)


@pytest.mark.parametrize("image", ["A", "AAAAA", "A A=", "é€ab", "data:image/png;base64,?", "data:,AAAA", "AAA=A==="])
def test_a_picture_in_json_is_base64(image: str) -> None:
    assert complaint(MeshRequest, {"image": image})[1] == "image"


def test_a_data_url_is_its_base64() -> None:
    assert MeshRequest(image="data:image/png;base64,AAAA").image == "AAAA"


# --- jobs ---


def test_a_job_has_everything_that_was_left_out() -> None:
    defaults = {"model": "m", "size": "64x64", "num_inference_steps": 10, "guidance_scale": 7.5}
    job = complete(ImageJob, ImageRequest(prompt="a", num_inference_steps=3, seed=0), defaults)

    assert job == ImageJob(prompt="a", model="m", size="64x64", num_inference_steps=3, guidance_scale=7.5, seed=0)


def test_a_field_that_is_null_is_left_out() -> None:
    defaults = {"model": "m", "num_inference_steps": 10, "guidance_scale": 7.5, "grid_size": 32}
    request = MeshRequest.model_validate_json('{"prompt": "a", "grid_size": null, "image": null}')

    assert complete(MeshJob, request, defaults).grid_size == 32


def test_a_default_never_beats_what_was_said() -> None:
    defaults = {"model": "m", "size": "64x64", "num_inference_steps": 10, "guidance_scale": 7.5}

    assert complete(ImageJob, ImageRequest(prompt="a", guidance_scale=0), defaults).guidance_scale == 0


# --- envelopes ---


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_envelope_is_what_openai_clients_parse(status: int, kind: str) -> None:
    body = envelope(status, "No.", "some_code", "field").model_dump_json()

    assert json.loads(body) == {"error": {"message": "No.", "type": kind, "param": "field", "code": "some_code"}}


def test_every_request_takes_a_model_and_a_seed() -> None:
    assert all(issubclass(body, GenerationRequest) for body in REQUESTS)
    assert Message(role="user", content="Hi").model_dump(exclude_none=True) == {"role": "user", "content": "Hi"}
