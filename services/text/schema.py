"""The text contract: a chat in, its next message out. Source: OpenAI's chat completions, the fields we serve."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from services.schema import Body, GenerationRequest, ModelId, check_is_text

Content = Annotated[str, StringConstraints(min_length=1, max_length=32_000), AfterValidator(check_is_text)]
Temperature = Annotated[float, Field(ge=0, le=2, description="0 always takes the likeliest token")]


class Message(Body):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`; what is left out takes the model's default."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=256)]
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
