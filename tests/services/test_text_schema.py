"""What may be sent: the SDK's own messages, and hints that change nothing."""

import json
from collections.abc import Callable
from typing import Any, Literal, get_args, get_type_hints

import httpx2  # the SDK's own
import openai
import pytest
from openai.types.chat import ParsedChatCompletionMessage
from pydantic import BaseModel, ValidationError

from services.encoders import Encoder
from services.engine.events import Done
from services.registry import load_models
from services.schema import complete, explain
from services.text.answers import ChatShape, ChunkEncoder, DocumentEncoder
from services.text.items import Reply, ReplyEncoder, ReplyStream
from services.text.pieces import Call, Piece
from services.text.schema import ChatJob, ChatRequest, CompletionRequest, ResponseJob, ResponseRequest

MODEL = next(model for model in load_models() if model.id == "tinyllama-1.1b-chat")
DEFAULTS = {"model": MODEL.id, **MODEL.defaults_in("tiny")}
HELLO = [{"role": "user", "content": "Hello"}]


class Clock(BaseModel):
    """Tells the time."""

    zone: Literal["UTC"]


ZONE = '{"zone":"UTC"}'
SAID = Piece(0, ZONE, finish_reason="stop")
CALLED = Piece(0, "", calls=[Call(0, "call_1", "Clock", ZONE)], finish_reason="tool_calls")
DONE = Done({"prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": 4}, "stop")


def client(encoder: Encoder, piece: Piece) -> openai.OpenAI:
    """An SDK that is answered with the piece, whatever it asks."""
    body = encoder.add(piece) + encoder.close(DONE)
    media_type = encoder.media_type
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=body, headers={"content-type": media_type}))
    return openai.OpenAI(api_key="-", base_url="http://sdk/v1", http_client=httpx2.Client(transport=transport))


def sent(ask: Callable[[openai.OpenAI], object]) -> Any:
    """What the SDK sends."""
    bodies = []

    def keep(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        return httpx2.Response(400)

    transport = httpx2.MockTransport(keep)
    with (
        openai.OpenAI(api_key="-", base_url="http://sdk/v1", http_client=httpx2.Client(transport=transport)) as sdk,
        pytest.raises(openai.BadRequestError),
    ):
        ask(sdk)
    return bodies[0]


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": HELLO, **fields})


def response(**fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"input": "Hello", **fields})


TOOLS: Any = [openai.pydantic_function_tool(Clock)]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's, of what it has parsed itself
@pytest.mark.parametrize("piece", [SAID, CALLED], ids=["a document", "a call"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_message_that_the_sdk_has_read_can_be_sent_back(piece: Piece, streams: bool) -> None:
    shape = ChatShape("tiny")
    made: ParsedChatCompletionMessage[Clock]
    if streams:
        sdk = client(ChunkEncoder(shape, includes_usage=False), piece)
        with sdk.chat.completions.stream(model="tiny", messages=[], response_format=Clock, tools=TOOLS) as stream:
            made = stream.get_final_completion().choices[0].message
    else:
        sdk = client(DocumentEncoder(shape), piece)
        read = sdk.chat.completions.parse(model="tiny", messages=[], response_format=Clock, tools=TOOLS)
        made = read.choices[0].message
    assert made.parsed is not None or made.tool_calls is not None

    def ask(sdk: openai.OpenAI) -> object:
        return sdk.chat.completions.create(model="tiny", messages=[*HELLO, made])  # type: ignore[list-item]

    for message in (sent(ask)["messages"][-1], made.to_dict(exclude_unset=False, warnings=False)):
        told = chat(messages=[*HELLO, message]).messages[-1]
        assert told.content == (piece.text or None)
        assert [call.function.arguments for call in told.tool_calls or ()] == [call.arguments for call in piece.calls]
        assert "parsed" not in json.dumps(told.model_dump())


@pytest.mark.parametrize("piece", [SAID, CALLED], ids=["a document", "a call"])
@pytest.mark.parametrize("streams", [False, True])
def test_items_that_the_sdk_has_read_can_be_sent_back(piece: Piece, streams: bool) -> None:
    request = response()
    reply = Reply(request, complete(ResponseJob, request.chat(), DEFAULTS))
    if streams:
        with client(ReplyStream(reply), piece).responses.stream(input="x", model="tiny", text_format=Clock) as stream:
            made = stream.get_final_response()
    else:
        made = client(ReplyEncoder(reply), piece).responses.parse(input="x", model="tiny", text_format=Clock)
    items: Any = made.output

    for sendable in (
        sent(lambda sdk: sdk.responses.create(model="tiny", input=items))["input"],
        [item.model_dump(mode="json", exclude_unset=True) for item in items],
    ):
        (told,) = response(input=sendable).chat().messages
        assert told.content == (piece.text or None)
        assert [call.function.arguments for call in told.tool_calls or ()] == [call.arguments for call in piece.calls]


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("said", ["cut off\ufffd", "\x1b[31mred\x1b[0m", "a page\x0c", "\x00", "\n", ""])
def test_what_a_model_or_a_tool_said_is_taken_back_as_it_is(said: str) -> None:
    turns = [
        {"role": "assistant", "content": said, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": said},
        {"role": "assistant", "content": [{"type": "text", "text": said}]},
    ]
    items = [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": said},
    ]

    assert [turn.content for turn in chat(messages=[*HELLO, *turns]).messages[1:]] == [said] * 3
    assert [turn.content for turn in response(input=items).chat().messages] == [said] * 2
    with pytest.raises(ValidationError):
        chat(messages=[{"role": "user", "content": said}])
    with pytest.raises(ValidationError):
        response(input=[{"role": "user", "content": said}])


HINTS: list[dict[str, Any]] = [
    {"metadata": {"a": "b"}},
    {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "24h"},
    {"safety_identifier": "s"},
    {"service_tier": "auto"},
    {"user": "u" * 250},
]
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_obfuscation": False}}


@pytest.mark.parametrize(
    "hint",
    [
        *HINTS,
        {"store": True},
        {"store": False},
        STREAMED,
        {"messages": [{**HELLO[0], "name": "bob", "refusal": None, "audio": None}]},
    ],
)
def test_hints_change_nothing_about_a_chat(hint: dict[str, Any]) -> None:
    assert complete(ChatJob, chat(**hint), DEFAULTS) == complete(ChatJob, chat(), DEFAULTS)


@pytest.mark.parametrize("hint", [*HINTS, {"background": False}, {"include": []}, {"store": False}, STREAMED])
def test_hints_change_nothing_about_a_response(hint: dict[str, Any]) -> None:
    assert response(**hint).chat() == response().chat()


def nullable(parameters: Any) -> set[str]:
    """What the SDK says may be null."""
    hints = get_type_hints(parameters)
    return {name for name, kind in hints.items() if type(None) in get_args(kind)} - {"prompt"}


@pytest.mark.parametrize(
    ("contract", "least", "parameters"),
    [
        (ChatRequest, {"messages": HELLO}, openai.types.chat.completion_create_params.CompletionCreateParamsBase),
        (CompletionRequest, {"prompt": "x"}, openai.types.completion_create_params.CompletionCreateParamsBase),
        (ResponseRequest, {"input": "x"}, openai.types.responses.response_create_params.ResponseCreateParamsBase),
    ],
)
def test_null_asks_for_nothing_wherever_the_sdk_may_send_it(contract: Any, least: Any, parameters: Any) -> None:
    names = nullable(parameters)
    sent = contract.model_validate({**least, **dict.fromkeys(names)})

    assert len(names) > 10
    assert sent == contract.model_validate(least)


NAMELESS = {"type": "json_schema", "json_schema": {"schema": {}}}
AMONG = "must have a 'type' among"


@pytest.mark.parametrize(
    ("ask", "fields", "name", "said"),
    [
        (chat, {"response_format": NAMELESS}, "response_format.json_schema.name", "is required"),
        (chat, {"response_format": {"type": "text", "x": 1}}, "response_format.x", "there is no such parameter here"),
        (chat, {"maxTokens": 5}, "maxTokens", "there is no such parameter here"),
        (chat, {"response_format": {"type": "x"}}, "response_format", f"{AMONG} 'text', 'json_object', 'json_schema'"),
        (chat, {"response_format": {}}, "response_format", "needs a 'type'"),
        (chat, {"response_format": "json"}, "response_format", f"{AMONG} 'text', 'json_object', 'json_schema'"),
        (response, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "is required"),
        (response, {"input": [{"role": "user", "content": ""}]}, "input.0.content", "must not be empty"),
        (response, {"input": [{"type": "function_call"}]}, "input.0.call_id", "is required"),
        (response, {"store": True}, "store", "must be false"),
    ],
)
def test_what_is_wrong_is_named_as_the_caller_wrote_it(ask: Any, fields: Any, name: str, said: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        ask(**fields)

    assert explain(refusal.value.errors()[0]) == (f"{name}: {said}", name)


def test_a_response_may_have_an_empty_list_of_tools_as_agents_send_it() -> None:
    assert (
        response(tools=[], parallel_tool_calls=True, tool_choice="auto").chat() == response(tool_choice="auto").chat()
    )


def test_what_came_of_a_call_may_be_given_in_parts() -> None:
    parts = [{"type": "input_text", "text": "sun"}, {"type": "input_text", "text": "ny"}]
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": parts}

    assert response(input=[call, output]).chat().messages[-1].content == "sunny"


@pytest.mark.parametrize("name", ["best_of", "suffix"])
def test_what_would_change_a_completion_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        CompletionRequest.model_validate({"prompt": "the", name: 2})

    assert explain(refusal.value.errors()[0]) == (f"{name}: there is no such parameter here", name)


@pytest.mark.parametrize(("number", "expected"), [(None, 0), (0, 0), (5, 5)])
def test_a_response_includes_probabilities_where_that_is_asked(number: int | None, expected: int) -> None:
    request = response(include=["message.output_text.logprobs"], top_logprobs=number)

    assert complete(ResponseJob, request.chat(), DEFAULTS).top_logprobs == expected


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"moderation": {}}, "moderation"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x", "refusal": "no"}]}, "messages"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
    ],
)
def test_what_would_change_a_chat_is_refused_by_its_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        chat(**fields)

    assert refusal.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["the", ""]}, "prompt"),
        ({"prompt": ["the", 3]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [1, -2]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": ["the"] * 257}, "prompt"),
        ({"prompt": ["the"] * 33, "n": 8}, "prompt"),
        ({"prompt": ["x" * 65_000] * 2}, "prompt"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_what_a_completion_cannot_have_is_refused_by_its_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        CompletionRequest.model_validate({"prompt": "the", **fields})

    assert refusal.value.errors()[0]["loc"] == (name,)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("the", ("the",)),
        (["the", "a"], ("the", "a")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_completion_may_have_one_prompt_or_several_of_text_or_of_tokens(given: Any, prompts: Any) -> None:
    assert CompletionRequest.model_validate({"prompt": given}).prompt == prompts


def test_what_else_a_response_might_include_is_refused_by_its_name() -> None:
    with pytest.raises(ValidationError) as refusal:
        response(include=["file_search_call.results"])

    assert refusal.value.errors()[0]["loc"][0] == "include"
