"""The text contracts: a chat in, its next messages out; a text in, what follows it out.

Source: OpenAI's chat completions, completions and responses; `top_k` is ours. What they have and we do not is refused
by its name.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.schema import BY_TYPE, AdaptedRequest, Body, GenerationRequest, ModelId, check_is_text

MAX_CHARACTERS = 128_000  # of all messages together, and of all prompts
MAX_PROMPTS = 256  # of a request
MAX_CHOICES = 256  # answers to all of them
MAX_MESSAGES = 256
MAX_SCHEMA_CHARACTERS = 64_000  # of a document, or of all tools
MAX_ANSWERS = 8
TOKEN = re.compile("[0-9]{1,7}")

Content = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(check_is_text)]
Said = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]  # or nothing
Temperature = Annotated[float, Field(ge=0, le=2, description="0 always takes the likeliest token")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
MaxTokens = Annotated[int, Field(ge=1, le=131_072)]
Likeliest = Annotated[int, Field(ge=0, le=20)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Hint = Annotated[str, StringConstraints(max_length=512), Field(description="accepted and not used")]
Unused = Annotated[Any, Field(exclude=True, description="accepted and not used")]
Nothing = Annotated[None, Field(exclude=True, description="not served; null asks for nothing")]


def check_is_object(value: str) -> str:
    """Refuse arguments that are no JSON object."""
    try:
        is_object = isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ValueError("must be a JSON object in a string")
    return value


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Said


def joined(part: type["TextPart | InputPart"]) -> BeforeValidator:
    """Read a text given in parts as one."""

    def join(value: object) -> object:
        if not isinstance(value, list):
            return value
        return "".join(part.model_validate(each).text for each in value)

    return BeforeValidator(join, json_schema_input_type=Said | list[part])  # type: ignore[valid-type]


class CalledFunction(Body):
    """What was called, and with what."""

    name: FunctionName
    arguments: Annotated[str, StringConstraints(max_length=MAX_CHARACTERS), AfterValidator(check_is_object)]
    parsed_arguments: Unused = None


class ToolCall(Body):
    """A call that the model made."""

    id: CallId
    type: Literal["function"]
    function: CalledFunction
    index: Unused = None


def check_is_said(content: str | None, role: str | None) -> str | None:
    """Refuse what nobody typed where somebody must have; what models and tools said is taken back as it is."""
    return content if content is None or role in ("assistant", "tool") else check_is_text(content)


class Message(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Said, joined(TextPart)] | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Field(min_length=1, max_length=256)] | None = None
    tool_call_id: CallId | None = None
    name: Annotated[Hint | None, Field(exclude=True)] = None
    parsed: Unused = None
    annotations: Unused = None
    refusal: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None

    @field_validator("content")
    @classmethod
    def check_content(cls, content: str | None, others: ValidationInfo) -> str | None:
        """Refuse callers' turns that say nothing, or what nobody can type; models' and tools' may."""
        return check_is_said(content, others.data.get("role"))

    @model_validator(mode="after")
    def check_parts(self) -> "Message":
        """Refuse what does not belong to the role, and want of what does."""
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a tool's message, and no other, needs tool_call_id")
        if self.content is None and self.tool_calls is None:
            raise ValueError("needs content")
        return self


class Function(Body):
    """A function that the model may call."""

    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=8000)] | None = None
    parameters: Annotated[dict[str, Any], Field(description="a JSON schema of the arguments")] | None = None
    strict: Annotated[bool | None, Field(description="arguments keep to the schema, as where a call must be made")] = (
        None
    )

    @field_validator("parameters")
    @classmethod
    def check_parameters(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refuse arguments that are no object: they have no names."""
        if parameters is not None and parameters.get("type", "object") != "object":
            raise ValueError("must be a JSON schema of type 'object'")
        return parameters


class Tool(Body):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Body):
    """The name of a function."""

    name: FunctionName


class ChosenTool(Body):
    """The tool that must be used."""

    type: Literal["function"]
    function: ChosenFunction


def check_is_short(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse a schema that takes long to read: all the others would wait."""
    try:
        length = len(json.dumps(schema))
    except RecursionError:
        length = MAX_SCHEMA_CHARACTERS + 1
    if length > MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"must have at most {MAX_SCHEMA_CHARACTERS} characters, and not be nested too deeply")
    return schema


class JsonSchema(Body):
    """What a document must look like."""

    model_config = ConfigDict(populate_by_name=True)

    name: FunctionName
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema"), AfterValidator(check_is_short)]
    strict: bool | None = None


class TextFormat(Body):
    """Anything."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]

    @property
    def document(self) -> dict[str, Any]:
        """Its schema."""
        return {"type": "object"}


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def document(self) -> dict[str, Any]:
        """Its schema."""
        return self.json_schema.schema_


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[ObjectFormat, Tag("<json_object>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")],
    BY_TYPE,
]


def check_length(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Refuse a chat that no model's context holds: cutting it into tokens alone would keep the others waiting."""
    num_characters = sum(len(message.content or "") for message in messages)
    num_characters += sum(len(call.function.arguments) for message in messages for call in message.tool_calls or ())
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
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class HintedRequest(GenerationRequest):
    """What may be said and changes nothing about the answer."""

    metadata: Annotated[dict[str, str], Field(max_length=16, description="accepted and not used")] | None = None
    prompt_cache_key: Hint | None = None
    prompt_cache_retention: Hint | None = None
    safety_identifier: Hint | None = None
    service_tier: Hint | None = None
    user: Hint | None = None


class TextRequest(HintedRequest, AdaptedRequest):
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

    @field_validator("stream_options")
    @classmethod
    def check_options(cls, options: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        """Refuse what would be passed over in silence."""
        if options is not None and not others.data.get("stream"):
            raise ValueError("needs stream to be true")
        return options


class ChatRequest(TextRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=MAX_MESSAGES), AfterValidator(check_length)]
    max_completion_tokens: Annotated[MaxTokens | None, Field(description="another name of max_tokens")] = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[tuple[Tool, ...], Field(min_length=1, max_length=64)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    store: Annotated[bool | None, Field(description="accepted and not used: nothing is kept")] = None
    audio: Nothing = None
    modalities: Nothing = None
    moderation: Nothing = None
    prediction: Nothing = None
    reasoning_effort: Nothing = None
    verbosity: Nothing = None

    @field_validator("tools")
    @classmethod
    def check_tools(cls, tools: tuple[Tool, ...] | None, others: ValidationInfo) -> tuple[Tool, ...] | None:
        """Refuse two of a name, and tools where the answer is a document."""
        if tools is not None and len({tool.function.name for tool in tools}) < len(tools):
            raise ValueError("must have names of their own")
        if tools is not None and sum(len(tool.model_dump_json()) for tool in tools) > MAX_SCHEMA_CHARACTERS:
            raise ValueError(f"must have at most {MAX_SCHEMA_CHARACTERS} characters together, as JSON")
        wanted = others.data.get("response_format")
        if tools is not None and not isinstance(wanted, TextFormat | None):
            raise ValueError("and a response_format of JSON do not go together here")
        return tools

    @field_validator("tool_choice", "parallel_tool_calls")
    @classmethod
    def check_choice(cls, value: Any, others: ValidationInfo) -> Any:
        """Refuse a choice among tools that there are not."""
        tools = others.data.get("tools") or ()
        if not tools and value not in (None, "none", "auto"):
            raise ValueError("needs tools")
        if isinstance(value, ChosenTool) and value.function.name not in {tool.function.name for tool in tools}:
            raise ValueError(f"names '{value.function.name}', which is none of the tools")
        return value

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


def as_prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """Read one prompt or several, of text or of tokens, as a tuple of prompts.

    Raises:
        ValueError: it is none of these, or too much.
    """
    given = [value] if isinstance(value, str) or is_tokens(value) else value
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= MAX_PROMPTS:
        raise ValueError(f"must be a text, a list of numbers of tokens, or a list of 1 to {MAX_PROMPTS} of these")
    prompts: list[str | tuple[int, ...]] = []
    for prompt in given:
        if isinstance(prompt, str):
            prompts.append(check_is_text(prompt))
        elif is_tokens(prompt):
            prompts.append(tuple(prompt))
        else:
            raise ValueError("must have prompts of text, or of numbers of tokens, that are not empty")
    if sum(map(len, prompts)) > MAX_CHARACTERS:
        raise ValueError(f"must have at most {MAX_CHARACTERS} characters or tokens together")
    return tuple(prompts)


def is_tokens(value: Any) -> TypeGuard[Sequence[int]]:
    """Whether it is a list of numbers of tokens, and not empty."""
    return isinstance(value, list | tuple) and bool(value) and all(type(one) is int and one >= 0 for one in value)


class CompletionRequest(TextRequest):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        tuple[str | tuple[int, ...], ...],
        BeforeValidator(as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
        Field(description="one or several, each a text or a list of numbers of tokens; choices are in their order"),
    ]
    max_tokens: Annotated[int, Field(ge=0, le=131_072)] | None = None
    echo: bool | None = None
    logprobs: Annotated[Likeliest | None, Field(description="with echo, of the prompt's tokens as well")] = None
    best_of: Nothing = None
    suffix: Nothing = None

    @field_validator("prompt")
    @classmethod
    def check_choices(cls, prompts: Any, others: ValidationInfo) -> Any:
        """Refuse more answers than a request may have."""
        if len(prompts) * (others.data.get("n") or 1) > MAX_CHOICES:
            raise ValueError(f"and n make more than {MAX_CHOICES} answers together; send several requests")
        return prompts


class InputPart(Body):
    """A part of an item's text; what an answer's own parts have besides is taken back and not used."""

    type: Literal["input_text", "output_text"]
    text: Said
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Unused = None


class MessageItem(Body):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Said, joined(InputPart)]
    id: CallId | None = None
    status: str | None = None

    @field_validator("content")
    @classmethod
    def check_content(cls, content: str, others: ValidationInfo) -> str | None:
        """Refuse callers' turns that say nothing, or what nobody can type; models' may."""
        return check_is_said(content, others.data.get("role"))

    def turn(self) -> dict[str, Any]:
        """Return it as a chat has it."""
        return {"role": self.role, "content": self.content}


class CallItem(Body):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: Annotated[str, StringConstraints(max_length=MAX_CHARACTERS), AfterValidator(check_is_object)]
    id: CallId | None = None
    status: str | None = None
    parsed_arguments: Unused = None

    def turn(self) -> dict[str, Any]:
        """Return it as a chat has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"role": "assistant", "tool_calls": [{"id": self.call_id, "type": "function", "function": function}]}


class OutputItem(Body):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Annotated[Said, joined(InputPart)]
    id: CallId | None = None
    status: str | None = None

    def turn(self) -> dict[str, Any]:
        """Return it as a chat has it."""
        return {"role": "tool", "tool_call_id": self.call_id, "content": self.output}


def typed(value: object) -> object:
    """Read an item without a type as a message, as OpenAI does."""
    return {"type": "message", **value} if isinstance(value, dict) else value


Item = Annotated[
    Annotated[
        Annotated[MessageItem, Tag("<message>")]
        | Annotated[CallItem, Tag("<function_call>")]
        | Annotated[OutputItem, Tag("<function_call_output>")],
        BY_TYPE,
    ],
    BeforeValidator(typed),
]


def check_items(items: tuple[Item, ...], others: ValidationInfo) -> tuple[Item, ...]:
    """Refuse what no chat may have, and no model's context holds; the instructions are one more turn."""
    instructions = others.data.get("instructions")
    most = MAX_MESSAGES - (instructions is not None)
    if len(items) > most:
        raise ValueError(f"must have at most {most} items, not {len(items)}")
    num_characters = sum(len(str(item.turn())) for item in items) + len(instructions or "")
    if num_characters > MAX_CHARACTERS:
        raise ValueError(f"must have at most {MAX_CHARACTERS} characters together, not {num_characters}")
    return items


def as_items(value: object) -> object:
    """Read a text as what the user says."""
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    return tuple(value) if isinstance(value, list) else value  # a tuple is all that a strict reading takes


class NamedFunction(Function):
    """A function that the model may call, as responses have it."""

    type: Literal["function"]


class NamedChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


class NamedSchema(JsonSchema):
    """JSON of a schema, as responses have it."""

    type: Literal["json_schema"]


class TextOptions(Body):
    """What the text must be."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag("<text>")]
            | Annotated[ObjectFormat, Tag("<json_object>")]
            | Annotated[NamedSchema, Tag("<json_schema>")],
            BY_TYPE,
        ]
        | None
    ) = None


class ResponseStreamOptions(Body):
    """What a stream of a response tells besides."""

    include_obfuscation: Literal[False] | None = None


class ResponseRequest(HintedRequest, AdaptedRequest):
    """Body of `POST /v1/responses`. Nothing is kept: `store` may only be false."""

    instructions: Content | None = None
    input: Annotated[
        tuple[Item, ...],
        Field(min_length=1, max_length=MAX_MESSAGES),
        BeforeValidator(as_items, json_schema_input_type=Content | list[Item]),
        AfterValidator(check_items),
    ]
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    top_logprobs: Likeliest | None = None
    text: TextOptions | None = None
    tools: Annotated[tuple[NamedFunction, ...], Field(max_length=64)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    include: Annotated[tuple[Literal["message.output_text.logprobs"], ...], Field(max_length=8)] | None = None
    stream_options: ResponseStreamOptions | None = None
    context_management: Nothing = None
    conversation: Nothing = None
    max_tool_calls: Nothing = None
    moderation: Nothing = None
    previous_response_id: Nothing = None
    prompt: Nothing = None
    reasoning: Nothing = None

    def chat(self) -> ChatRequest:
        """Return what it asks for as a chat."""
        turns = [item.turn() for item in self.input]
        if self.instructions is not None:
            turns.insert(0, {"role": "system", "content": self.instructions})
        fields: dict[str, Any] = {
            "model": self.model,
            "seed": self.seed,
            "messages": merged(turns),
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "adapter": self.adapter,
            "parallel_tool_calls": self.parallel_tool_calls if self.tools else None,
        }
        if self.top_logprobs is not None or self.include:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        wanted = self.text.format if self.text is not None else None
        if isinstance(wanted, NamedSchema):
            schema = wanted.model_dump(exclude={"type"}, by_alias=True)
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif wanted is not None:
            fields["response_format"] = wanted.model_dump()
        if self.tools:
            functions = (tool.model_dump(exclude={"type"}) for tool in self.tools)
            fields["tools"] = [{"type": "function", "function": function} for function in functions]
        choice = self.tool_choice
        if isinstance(choice, NamedChoice):
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        elif choice is not None:
            fields["tool_choice"] = choice
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})


def merged(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one turn of an answer and of the calls right behind it, as chats have it."""
    chat: list[dict[str, Any]] = []
    for turn in turns:
        if "tool_calls" in turn and chat and chat[-1]["role"] == "assistant":
            chat[-1] = {**chat[-1], "tool_calls": [*chat[-1].get("tool_calls", ()), *turn["tool_calls"]]}
        else:
            chat.append(turn)
    return chat


class TextJob(AdaptedRequest):
    """A request with the model's defaults in: what the model needs to know, and no more.

    Args:
        source: the field that the prompt comes from.
        document_source: the field that the answer's schema comes from.
        goes_on: whether the answer goes on from the prompt's own text.
    """

    model_config = ConfigDict(extra="ignore")

    source: ClassVar[str]
    document_source: ClassVar[str] = "response_format"
    goes_on: ClassVar[bool] = False

    model: ModelId
    max_tokens: Annotated[int, Field(ge=0)]
    temperature: Temperature
    top_p: float
    top_k: int
    n: int = 1
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    top_logprobs: int | None = None  # None: no probabilities at all
    parallel_tool_calls: bool = True
    echo: bool = False  # whether an answer begins with its prompt
    _tokens: Sequence[Sequence[int]] | None = PrivateAttr(None)

    @property
    def callable(self) -> Collection[str]:
        """The functions that calls are looked for of."""
        return ()

    @property
    def must_call(self) -> Sequence[Function]:
        """The functions one of which must be called; none: none must."""
        return ()

    @property
    def may_call(self) -> Sequence[Function]:
        """The functions that may be called and whose calls must be right; none: calls are as the model makes them."""
        return ()

    @property
    def document(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must keep to, if any."""
        return None

    @property
    def scores_prompt(self) -> bool:
        """Whether probabilities of the prompt's own tokens are wanted."""
        return self.echo and self.top_logprobs is not None

    def tokens(self, cut: "Callable[[TextJob], Sequence[Sequence[int]]]") -> Sequence[Sequence[int]]:
        """Return the prompts in tokens; they are cut once."""
        if self._tokens is None:
            self._tokens = cut(self)
        return self._tokens


class ChatJob(TextJob):
    """A chat to be continued."""

    source: ClassVar[str] = "messages"

    preamble: str = ""  # the operator's, before the system's turn
    system_prompt: str
    messages: tuple[Message, ...]
    response_format: ResponseFormat | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["none", "auto", "required"] | ChosenTool = "auto"

    @model_validator(mode="before")
    @classmethod
    def rename(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Give what has two names one of them."""
        max_tokens = fields.get("max_completion_tokens", fields["max_tokens"])
        top_logprobs = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
        return {**fields, "max_tokens": max_tokens, "top_logprobs": top_logprobs}

    @property
    def callable(self) -> Collection[str]:
        """The functions that may be called."""
        return () if self.tool_choice == "none" else {tool.function.name for tool in self.tools}

    @property
    def must_call(self) -> Sequence[Function]:
        """The functions one of which must be called; none: none must."""
        if not self.tools or self.tool_choice in ("none", "auto"):
            return ()
        name = self.tool_choice.function.name if isinstance(self.tool_choice, ChosenTool) else None
        return [tool.function for tool in self.tools if name in (None, tool.function.name)]

    @property
    def may_call(self) -> Sequence[Function]:
        """The functions, if one of them is strict; of the others, arguments may be anything."""
        functions = [tool.function for tool in self.tools]
        if self.tool_choice != "auto" or not any(function.strict for function in functions):
            return ()
        return [one if one.strict else one.model_copy(update={"parameters": None}) for one in functions]

    @property
    def document(self) -> dict[str, Any] | None:
        """The schema that the answer must keep to."""
        wanted = self.response_format
        return None if wanted is None or isinstance(wanted, TextFormat) else wanted.document


class CompletionJob(TextJob):
    """A text to be continued."""

    source: ClassVar[str] = "prompt"
    goes_on: ClassVar[bool] = True

    said: tuple[str, ...] = ()  # the prompts without the operator's words, where there are some
    prompt: Annotated[tuple[str | tuple[int, ...], ...], BeforeValidator(as_prompts)]

    @model_validator(mode="before")
    @classmethod
    def rename(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Give the number of probabilities the name that it has in a chat."""
        return {**fields, "top_logprobs": fields.get("logprobs")}


class ResponseJob(ChatJob):
    """A response to be written: a chat under another name."""

    source: ClassVar[str] = "input"
    document_source: ClassVar[str] = "text"
