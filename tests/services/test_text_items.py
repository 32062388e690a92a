"""Responses: items whole and event by event, and what is sent back of them."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from services.engine.events import Done, Started
from services.errors import QueueFull
from services.registry import load_models
from services.schema import complete
from services.text.items import Reply, ReplyEncoder, ReplyStream
from services.text.pieces import Call, Piece, Token
from services.text.schema import ResponseJob, ResponseRequest

MODEL = next(model for model in load_models() if model.id == "tinyllama-1.1b-chat")
DEFAULTS = {"model": MODEL.id, **MODEL.defaults_in("tiny")}
USAGE = {"prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": 4}
TURNS = [{"role": "user", "content": "x"}] * 256
TOKEN = Token("Hi", [72, 105], -0.5)
CALL = Call(0, "call_1", "clock", '{"zone": "UTC"}')
PIECES = [Piece(0, "Hi"), Piece(0, " you", [TOKEN]), Piece(0, "", calls=[CALL], finish_reason="tool_calls")]


def asked(**fields: Any) -> ResponseRequest:
    return ResponseRequest(**{"input": "Hello", **fields})


def reply(**fields: Any) -> Reply:
    request = asked(**fields)
    return Reply(request, complete(ResponseJob, request.chat(), DEFAULTS))


def events(stream: ReplyStream, *pieces: Piece, reason: str = "stop") -> list[Any]:
    data = b"".join([*(stream.add(piece) for piece in pieces), stream.close(Done(USAGE, reason))])
    *frames, last, rest = data.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    read = []
    for frame in frames:
        name, body = frame.split("\n")
        read.append(json.loads(body.removeprefix("data: ")))
        assert name == f"event: {read[-1]['type']}"
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    return read


def whole(*pieces: Piece, reason: str = "stop", **fields: Any) -> Any:
    encoder = ReplyEncoder(reply(**fields))
    for piece in pieces:
        assert encoder.add(piece) == b""
    return json.loads(encoder.close(Done(USAGE, reason)))


def test_a_stream_has_openais_events_in_openais_order() -> None:
    read = events(ReplyStream(reply()), *PIECES)

    assert [event["type"].removeprefix("response.") for event in read] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in read if event["type"] == "response.output_text.delta"] == ["Hi", " you"]
    assert read[6]["text"] == "Hi you"
    assert {event["output_index"] for event in read[2:9]} == {0}
    assert {event["output_index"] for event in read[9:13]} == {1}
    assert read[4]["item_id"] == read[2]["item"]["id"] == read[-1]["response"]["output"][0]["id"]
    assert read[0]["response"]["status"] == "in_progress"
    assert read[-1]["response"]["status"] == "completed"


def test_a_document_is_what_the_stream_ends_with() -> None:
    document = whole(*PIECES, instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=9)
    message, call = document["output"]

    assert (document["object"], document["status"], document["store"]) == ("response", "completed", False)
    assert (document["instructions"], document["metadata"], document["max_output_tokens"]) == (
        "Be brief.",
        {"a": "b"},
        9,
    )
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert [part["text"] for part in message["content"]] == ["Hi you"]
    assert [token["token"] for token in message["content"][0]["logprobs"]] == ["Hi"]
    assert (call["type"], call["call_id"], call["name"], call["arguments"]) == (
        "function_call", "call_1", "clock", '{"zone": "UTC"}',
    )  # fmt: skip
    assert document["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }


def test_what_was_cut_off_is_incomplete() -> None:
    document = whole(Piece(0, "Hi", finish_reason="length"), reason="length")
    last = events(ReplyStream(reply()), Piece(0, "Hi", finish_reason="length"), reason="length")[-1]

    assert (document["status"], document["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert document["output"][0]["status"] == "incomplete"
    assert last["type"] == "response.incomplete"


def test_an_empty_answer_is_an_empty_message() -> None:
    document = whole(Piece(0, "", finish_reason="stop"))

    assert [part["text"] for part in document["output"][0]["content"]] == [""]


def test_an_error_is_an_event_that_the_sdk_raises() -> None:
    stream = ReplyStream(reply())
    assert stream.tell(Started()) == b""
    name, body = stream.tell(QueueFull("later", retry_after=3)).decode().strip().split("\n")

    assert name == "event: error"
    assert json.loads(body.removeprefix("data: "))["error"]["code"] == "queue_full"


def test_a_request_is_a_chat() -> None:
    tool = {"type": "function", "name": "clock", "parameters": {"type": "object"}}
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "integer"}}
    chat = asked(
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": text} for text in ("What ", "time?")]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
            },
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "clock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "noon"},
        ],
        tools=[tool],
        tool_choice={"type": "function", "name": "clock"},
        max_output_tokens=7,
        top_logprobs=2,
    ).chat()
    roles = [(message.role, message.content) for message in chat.messages]

    assert roles == [
        ("system", "Be brief."),
        ("user", "What time?"),
        ("assistant", "Let me see."),
        ("tool", "noon"),
    ]
    assert chat.messages[2].tool_calls is not None
    assert chat.messages[2].tool_calls[0].function.name == "clock"
    assert chat.tools is not None
    assert (chat.tools[0].function.name, chat.max_tokens, chat.top_logprobs) == ("clock", 7, 2)
    wanted = asked(text={"format": schema}).chat().response_format
    assert wanted is not None
    assert wanted.model_dump(by_alias=True, exclude_none=True)["json_schema"]["schema"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": TURNS, "instructions": "Be brief."}, "input"),
        ({"input": [*TURNS, TURNS[0]]}, "input"),
        ({"input": [{"role": "user", "content": "x" * 31_960}] * 4, "instructions": "x" * 1000}, "input"),
        ({"input": [{"type": "input_image"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        asked(**fields)

    assert refusal.value.errors()[0]["loc"][0] == name


def test_as_many_items_as_a_chat_has_messages_are_taken() -> None:
    assert len(asked(input=TURNS).chat().messages) == 256
    assert len(asked(input=TURNS[1:], instructions="Be brief.").chat().messages) == 256
    longest = [{"role": "user", "content": "x" * 31_960}] * 4
    assert len(asked(input=longest).chat().messages) == 4


def test_probabilities_of_a_call_are_no_message() -> None:
    document = whole(Piece(0, "", [TOKEN]), Piece(0, "", [TOKEN], [CALL], "tool_calls"))

    assert [item["type"] for item in document["output"]] == ["function_call"]


def test_what_models_and_tools_leave_empty_can_be_sent_back_and_what_users_do_cannot() -> None:
    empty = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "", "annotations": []}],
    }
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": ""}
    chat = asked(input=[{"role": "user", "content": "Hi"}, empty, call, output]).chat()

    assert [message.content for message in chat.messages] == ["Hi", "", ""]
    with pytest.raises(ValidationError):
        asked(input=[{"role": "user", "content": ""}])


def test_what_would_take_long_to_read_is_refused() -> None:
    large = {"type": "object", "description": "hello " * 20_000}
    with pytest.raises(ValidationError) as refusal:
        asked(tools=[{"type": "function", "name": "f", "parameters": large}]).chat()
    assert refusal.value.errors()[0]["loc"][0] == "tools"
    with pytest.raises(ValidationError):
        asked(text={"format": {"type": "json_schema", "name": "x", "schema": large}})
    deep = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":' + "[" * 9000}
    with pytest.raises(ValidationError):
        asked(input=[deep])
