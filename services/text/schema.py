"""The text contracts: a chat in, its next messages out; a text in, what follows it out.

Source: OpenAI's chat completions and completions; `top_k` is ours. What they have and we do not is refused by name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.schema import Body, GenerationRequest, ModelId, check_is_text

MAX_CHARACTERS = 128_000  # of all messages together
MAX_ANSWERS = 8
TOKEN = re.compile("[0-9]{1,7}")

Content = Annotated[str, StringConstraints(min_length=1, max_length=32_000), AfterValidator(check_is_text)]
Temperature = Annotated[float, Field(ge=0, le=2, description="0 always takes the likeliest token")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
MaxTokens = Annotated[int, Field(ge=1, le=131_072)]
Likeliest = Annotated[int, Field(ge=0, le=20)]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Content


def joined(value: object) -> object:
    """Read a message given in parts, all of them text, as one text."""
    if not isinstance(value, list):
        return value
    return "".join(TextPart.model_validate(part).text for part in value)


class Message(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Content, BeforeValidator(joined, json_schema_input_type=Content | list[TextPart])]


def check_length(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Refuse a chat that no model's context holds: cutting it into tokens alone would keep the others waiting."""
    num_characters = sum(len(message.content) for message in messages)
    if num_characters > MAX_CHARACTERS:
        raise ValueError(f"must have at most {MAX_CHARACTERS} characters together, not {num_characters}")
    return messages


def check_bias(value: Mapping[str, float]) -> Mapping[str, float]:
    """Refuse keys that are no tokens."""
    for token in value:
        if not TOKEN.fullmatch(token):
            raise ValueError("must have numbers of tokens as keys")
    return value


def listed(value: object) -> object:
    """Read one stop string as a list of one."""
    return [value] if isinstance(value, str) else value


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None


class TextRequest(GenerationRequest):
    """What both contracts have; what is left out takes the model's default."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    stop: (
        Annotated[
            tuple[Stop, ...],
            Field(max_length=8),
            BeforeValidator(listed, json_schema_input_type=Stop | list[Stop]),
        ]
        | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1000), AfterValidator(check_bias)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=200), Field(description="accepted and not used")] | None = None

    @field_validator("stream_options")
    @classmethod
    def check_options(cls, options: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        """Refuse what would be passed over in silence."""
        if options is not None and not others.data.get("stream"):
            raise ValueError("needs stream to be true")
        return options


class ChatRequest(TextRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=256), AfterValidator(check_length)]
    max_completion_tokens: Annotated[MaxTokens | None, Field(description="another name of max_tokens")] = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None

    @field_validator("max_completion_tokens")
    @classmethod
    def check_names(cls, number: int | None, others: ValidationInfo) -> int | None:
        """Refuse one thing under two names."""
        if number is not None and others.data.get("max_tokens") is not None:
            raise ValueError("is another name of max_tokens; give one of them")
        return number

    @field_validator("top_logprobs")
    @classmethod
    def check_logprobs(cls, number: int | None, others: ValidationInfo) -> int | None:
        """Refuse what would be passed over in silence."""
        if number is not None and not others.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return number


class CompletionRequest(TextRequest):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(check_is_text)]
    logprobs: Likeliest | None = None
    echo: bool | None = None


class TextJob(GenerationRequest):
    """A request with the model's defaults in: what the model needs to know, and no more."""

    model_config = ConfigDict(extra="ignore")

    model: ModelId
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Temperature
    top_p: float
    top_k: int
    n: int = 1
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    top_logprobs: int | None = None  # None: no probabilities at all
    _tokens: Sequence[int] | None = PrivateAttr(None)

    @property
    def source(self) -> str:
        """The field that the prompt comes from."""
        raise NotImplementedError

    def tokens(self, tokenizer: Any) -> Sequence[int]:
        """Return the prompt in tokens; it is cut once."""
        if self._tokens is None:
            self._tokens = self._cut(tokenizer)
        return self._tokens

    def _cut(self, tokenizer: Any) -> Sequence[int]:
        raise NotImplementedError


class ChatJob(TextJob):
    """A chat to be continued."""

    system_prompt: str
    messages: tuple[Message, ...]

    @model_validator(mode="before")
    @classmethod
    def rename(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Give what has two names one of them."""
        max_tokens = fields.get("max_completion_tokens", fields["max_tokens"])
        top_logprobs = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
        return {**fields, "max_tokens": max_tokens, "top_logprobs": top_logprobs}

    @property
    def source(self) -> str:
        """The messages."""
        return "messages"

    def _cut(self, tokenizer: Any) -> Sequence[int]:
        chat = [{"role": message.role, "content": message.content} for message in self.messages]
        for turn in chat:
            if turn["role"] == "developer":
                turn["role"] = "system"
        if chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": self.system_prompt})
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        tokens: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens


class CompletionJob(TextJob):
    """A text to be continued."""

    prompt: str

    @model_validator(mode="before")
    @classmethod
    def rename(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Give the number of probabilities the name that it has in a chat."""
        return {**fields, "top_logprobs": fields.get("logprobs")}

    @property
    def source(self) -> str:
        """The prompt."""
        return "prompt"

    def _cut(self, tokenizer: Any) -> Sequence[int]:
        tokens: Sequence[int] = tokenizer(self.prompt)["input_ids"]
        return tokens
