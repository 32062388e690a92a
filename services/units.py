"""What each modality is counted in, and the most that a request can use; knows no engine and no price."""

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal

from services.audio.schema import SpeechRequest
from services.image.schema import ImageRequest
from services.schema import SIZE, GenerationRequest, parse_size
from services.text.schema import ChatRequest, CompletionRequest, ResponseRequest, TextRequest
from services.video.schema import VideoRequest

Unit = Literal["tokens", "audio_seconds", "pixel_steps", "frames", "meshes"]
UNITS: Final[Mapping[str, Unit]] = MappingProxyType(
    {"text": "tokens", "audio": "audio_seconds", "image": "pixel_steps", "video": "frames", "mesh": "meshes"}
)
MAX_ANSWERS = 128  # that a provider gives at once
OUTSIDE_SIZE, OUTSIDE_STEPS = "1024x1024", 50  # of a provider's picture, where the request does not say
OUTSIDE_NUMBERS = frozenset(map(str, range(1, 11)))  # of pictures
MAX_OUTSIDE_TOKENS = 16_384  # of an answer whose length neither the caller nor we know the end of
# By the field that each of its routes has: what says how long an answer may be there, and is ignored elsewhere.
LIMITS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "messages": ("max_completion_tokens", "max_tokens"),
        "input": ("max_output_tokens",),
        "prompt": ("max_tokens",),
    }
)
# Parts that are more to read than their bytes here: pictures, sounds, files, earlier answers.
ATTACHED = re.compile(rb'"type": "(?:image_url|input_image|input_audio|file|input_file|item_reference)"')
REMEMBERED = ("previous_response_id", "conversation")
TEMPLATE_BYTES = 64  # of a chat template, beyond what the messages' own JSON takes
PIECE_SECONDS = 16.0  # Bark says no more in one go: 768 tokens at 49.9 a second
PIECE_CHARACTERS = 100  # pieces are cut at 200 characters, and may be cut at a comma before
PIECE_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f\n,;")
# Where neither the request nor the model says: what the contracts allow at most.
MAX_TOKENS, MAX_SIZE, MAX_STEPS, MAX_FRAMES = 131_072, "2048x2048", 200, 161


def most(body: GenerationRequest, defaults: Mapping[str, Any]) -> float:
    """Return the largest number of units that a request can use.

    Args:
        body: as the worker's contract has it.
        defaults: the model's, for what the body leaves out.
    """
    match body:
        case ChatRequest() | CompletionRequest() | ResponseRequest():
            return tokens(body, defaults)
        case SpeechRequest():
            return audio_seconds(body)
        case ImageRequest():
            width, height = parse_size(body.size or defaults.get("size", MAX_SIZE))
            num_steps: int = body.num_inference_steps or defaults.get("num_inference_steps", MAX_STEPS)
            return (body.n or 1) * width * height * num_steps
        case VideoRequest():
            return body.num_frames or defaults.get("num_frames", MAX_FRAMES)
    return 1  # one mesh


def most_outside(task: str, body: Mapping[str, Any]) -> float:
    """Return the most that a provider's model can use, whose contract is its own, in the task's unit.

    What a provider makes of a picture or a text nobody tells: that counts as if a model of ours had done it.
    """
    match task:
        case "image":
            return pixel_steps_outside(body)
        case "audio":
            text = body.get("input")
            return pieces(text if isinstance(text, str) else "") * PIECE_SECONDS
    return tokens_outside(body)


def pixel_steps_outside(body: Mapping[str, Any]) -> int:
    """Return the pixels of all pictures, times the steps that are usual."""
    size, n = body.get("size"), str(body.get("n", 1))  # a form has texts
    width, height = parse_size(size if isinstance(size, str) and SIZE.fullmatch(size) else OUTSIDE_SIZE)
    return width * height * OUTSIDE_STEPS * (int(n) if n in OUTSIDE_NUMBERS else 1)


def tokens_outside(body: Mapping[str, Any]) -> int:
    """Return the most tokens that it can use: at least a byte each, but for what is named and stands elsewhere."""
    routes = [field for field in LIMITS if field in body] or ["prompt"]
    longest = max(longest_answer(body, LIMITS[route]) for route in routes)
    prompts, wanted = body.get("prompt"), [body.get("n"), body.get("best_of")]
    num_prompts = len(prompts) if isinstance(prompts, list) else 1
    counts = [count for count in wanted if isinstance(count, int) and 1 <= count <= MAX_ANSWERS]
    written = json.dumps(body, ensure_ascii=False).encode(errors="replace")
    num_read = len(written) + MAX_OUTSIDE_TOKENS * (
        len(ATTACHED.findall(written)) + sum(body.get(name) is not None for name in REMEMBERED)
    )
    return num_read + num_prompts * max(counts, default=1) * longest


def longest_answer(body: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return how many tokens an answer may have, by the fields that say so."""
    limits = [body.get(name) for name in names]
    given = [min(limit, MAX_TOKENS) for limit in limits if isinstance(limit, int) and limit > 0]
    return max(given, default=MAX_OUTSIDE_TOKENS)


def tokens(body: TextRequest | ResponseRequest, defaults: Mapping[str, Any]) -> int:
    """Tokens of the prompt, which are a byte at least each, and of all answers."""
    num_bytes = len(body.model_dump_json(exclude_none=True).encode()) + TEMPLATE_BYTES
    num_bytes += len(str(defaults.get("system_prompt", "")).encode())
    if isinstance(body, ResponseRequest):
        num_answers, asked_for = 1, body.max_output_tokens
    else:
        num_answers, asked_for = body.n or 1, body.max_tokens
    if isinstance(body, ChatRequest):
        asked_for = asked_for or body.max_completion_tokens
    if isinstance(body, CompletionRequest):
        num_answers *= len(body.prompt)
    max_tokens: int = asked_for if asked_for is not None else defaults.get("max_tokens", MAX_TOKENS)
    return num_bytes + num_answers * max_tokens


def audio_seconds(body: SpeechRequest) -> float:
    """Seconds of speech: those of a piece, for as many pieces as the text can be cut into."""
    return pieces(body.input) * PIECE_SECONDS


def pieces(text: str) -> int:
    """Return how many pieces a text can be cut into."""
    return 1 + len(text) // PIECE_CHARACTERS + sum(character in PIECE_ENDS for character in text)
