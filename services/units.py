"""What each modality is counted in, and the most that a request can use; knows no engine and no price."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from services.audio.schema import SpeechRequest
from services.image.schema import ImageRequest
from services.schema import GenerationRequest, parse_size
from services.text.schema import ChatRequest, CompletionRequest, ResponseRequest, TextRequest
from services.video.schema import VideoRequest

Unit = Literal["tokens", "audio_seconds", "pixel_steps", "frames", "meshes"]
UNITS: Final[Mapping[str, Unit]] = MappingProxyType(
    {"text": "tokens", "audio": "audio_seconds", "image": "pixel_steps", "video": "frames", "mesh": "meshes"}
)
MAX_ANSWERS = 128  # that a provider gives at once
MAX_OUTSIDE_TOKENS = 16_384  # of an answer whose length neither the caller nor we know the end of
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
            return width * height * (body.num_inference_steps or defaults.get("num_inference_steps", MAX_STEPS))
        case VideoRequest():
            return body.num_frames or defaults.get("num_frames", MAX_FRAMES)
    return 1  # one mesh


def most_outside(body: Mapping[str, Any]) -> int:
    """Return the most tokens that a provider's model can use, whose contract is its own: at least a byte each."""
    limits = [body.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens")]
    given = [min(limit, MAX_TOKENS) for limit in limits if isinstance(limit, int) and limit > 0]
    prompts, wanted = body.get("prompt"), [body.get("n"), body.get("best_of")]
    num_prompts = len(prompts) if isinstance(prompts, list) else 1
    counts = [count for count in wanted if isinstance(count, int) and 1 <= count <= MAX_ANSWERS]
    num_bytes = len(json.dumps(body, ensure_ascii=False).encode(errors="replace"))
    return num_bytes + num_prompts * max(counts, default=1) * max(given, default=MAX_OUTSIDE_TOKENS)


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
    num_pieces = 1 + len(body.input) // PIECE_CHARACTERS + sum(character in PIECE_ENDS for character in body.input)
    return num_pieces * PIECE_SECONDS
