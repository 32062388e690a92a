"""The text contract: a chat in, its next message out. Source: OpenAI's chat completions, the fields we serve."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from services.schema import Body, GenerationRequest, ModelId, check_is_text

MAX_CHARACTERS = 128_000  # of all messages together

Content = Annotated[str, StringConstraints(min_length=1, max_length=32_000), AfterValidator(check_is_text)]
Temperature = Annotated[float, Field(ge=0, le=2, description="0 always takes the likeliest token")]


class Message(Body):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content


def check_length(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Refuse a chat that no model's context holds: cutting it into tokens alone would keep the others waiting."""
    num_characters = sum(len(message.content) for message in messages)
    if num_characters > MAX_CHARACTERS:
        raise ValueError(f"must have at most {MAX_CHARACTERS} characters together, not {num_characters}")
    return messages


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`; what is left out takes the model's default."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=256), AfterValidator(check_length)]
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None


class ChatJob(ChatRequest):
    """A request with the model's defaults in."""

    model: ModelId
    system_prompt: str
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Temperature
    top_p: float
    top_k: int
