"""The official SDK against a live text worker, and through the gateway."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.live.conftest import LONG, TOKEN, System

MODEL = "tinyllama-1.1b-chat"
WRONG = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[openai.OpenAI]:
    url = f"{system.worker('text')}/v1"
    with openai.OpenAI(base_url=url, api_key="-", default_headers=TOKEN, max_retries=0, timeout=LONG) as sdk:
        yield sdk


def test_a_chat_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 30, "seed": 5, "temperature": 1.0, "n": 2}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    texts, reasons = {0: "", 1: ""}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason

    assert [texts[choice.index] for choice in whole.choices] == [choice.message.content for choice in whole.choices]
    assert [reasons[choice.index] for choice in whole.choices] == [choice.finish_reason for choice in whole.choices]
    assert texts[0] != texts[1]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 60
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 64  # read for the first of the two requests


def test_a_stream_ends_with_done(system: System) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "stream": True}
    answer = httpx.post(f"{system.worker('text')}/v1/chat/completions", json=body, headers=TOKEN, timeout=LONG)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")


def test_a_completion_goes_on_from_the_prompt(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "the quick", "max_tokens": 8, "temperature": 0, "stop": "zebra"}
    made = client.completions.create(**asked, logprobs=2)
    (choice,) = made.choices
    (echoed,) = client.completions.create(**asked, echo=True).choices

    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert echoed.text == "the quick" + choice.text
    assert (made.object, choice.finish_reason) == ("text_completion", "length")


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    prompts = ["the quick", "a lazy dog", "the quick"]
    given: Any = {"model": MODEL, "max_tokens": 6, "seed": 4, "temperature": 1.0, "n": 2}
    whole = client.completions.create(prompt=prompts, **given)
    texts = dict.fromkeys(range(6), "")
    chunks = list(
        client.completions.create(prompt=prompts, **given, stream=True, stream_options={"include_usage": True})
    )
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    lone = client.completions.create(prompt=prompts[2], **{**given, "seed": 8})

    assert [choice.text for choice in whole.choices] == list(texts.values())
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert [choice.text for choice in lone.choices] == [choice.text for choice in whole.choices[4:]]
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert lone.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > lone.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens > 2 * lone.usage.prompt_tokens


def test_prompts_of_tokens_are_scored_as_evaluations_ask_for(client: openai.OpenAI) -> None:
    prompts = [[1, 20, 30, 40], [1, 50]]
    made = client.completions.create(model=MODEL, prompt=prompts, max_tokens=0, echo=True, logprobs=1, temperature=0)

    assert [len(choice.logprobs.tokens or []) for choice in made.choices if choice.logprobs] == [4, 2]
    for choice in made.choices:
        assert choice.logprobs is not None
        first, *others = choice.logprobs.token_logprobs or []
        assert first is None
        assert all(one < 0 for one in others)
        assert (choice.logprobs.top_logprobs or [])[0] is None
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (6, 0)


def test_probabilities_come_with_their_bytes(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0
    )
    assert made.choices[0].logprobs is not None
    shown = made.choices[0].logprobs.content or []

    assert len(shown) == 5
    for token in shown:
        assert bytes(token.bytes or []).decode() == token.token
        assert [one.logprob for one in token.top_logprobs] == sorted(
            (one.logprob for one in token.top_logprobs), reverse=True
        )


def test_an_answer_is_json_of_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    made = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
    )

    assert 0 <= json.loads(made.choices[0].message.content or "")["age"] <= 99


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_is_called_and_its_result_taken_in(client: openai.OpenAI, is_streamed: bool) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    given: Any = {
        "model": MODEL, "messages": HELLO, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False,
    }  # fmt: skip
    if is_streamed:
        with client.chat.completions.stream(**given) as stream:
            made: Any = stream.get_final_completion()
    else:
        made = client.chat.completions.create(**given)
    (call,) = made.choices[0].message.tool_calls

    assert made.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    said: Any = {"name": call.function.name, "arguments": call.function.arguments}
    after = client.chat.completions.create(
        model=MODEL,
        max_tokens=5,
        tools=[tool],
        messages=[
            *HELLO,
            {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": said}]},
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ],
    )
    assert after.choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 100}, "n"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": WRONG}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x " * 3000}], "stream": True}, "messages"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_its_name(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **fields})

    assert refusal.value.param == param


def test_callers_who_leave_at_random_leave_nothing_behind(system: System, client: openai.OpenAI) -> None:
    def is_idle() -> bool:
        left, ended = system.count("text", "atelier_generations_total", ending="left"), 0
        for ending in ("complete", "failed"):
            ended += int(system.count("text", "atelier_generations_total", ending=ending))
        return left + ended >= before + 200

    before = sum(
        system.count("text", "atelier_generations_total", ending=ending) for ending in ("complete", "left", "failed")
    )
    late = system.count("text", "atelier_iterations_after_leave_total")
    left = system.count("text", "atelier_generations_total", ending="left")

    def leave(number: int) -> None:
        dice = random.Random(number)
        body: dict[str, Any] = {"max_tokens": 400, "n": dice.randint(1, 2), "seed": number, "logit_bias": {"2": -100}}
        prompt: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the " * dice.randint(1, 300)}]
        stream = client.chat.completions.create(model=MODEL, messages=prompt, stream=True, **body)
        for _ in zip(range(dice.randint(1, 20)), stream, strict=False):
            pass
        stream.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(200)))
    system.wait(is_idle)
    num_left = system.count("text", "atelier_generations_total", ending="left") - left

    assert num_left == 200
    assert system.count("text", "atelier_iterations_after_leave_total") - late <= num_left
    assert client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5).choices[0].message.content


def test_a_response_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    given: Any = {"model": MODEL, "input": "Hello", "instructions": "Be brief.", "max_output_tokens": 20}
    whole = client.responses.create(**given, extra_body={"seed": 5})
    with client.responses.stream(**given, extra_body={"seed": 5}) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"

    assert whole.output_text == last.response.output_text
    assert whole.output_text == "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert len(whole.output_text) > 5
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    assert [event.type for event in events][:3] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert (whole.status, whole.incomplete_details and whole.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert whole.usage is not None
    assert whole.usage.output_tokens == 20


def test_a_response_calls_a_tool_and_goes_on_from_its_result(client: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    given: Any = {"model": MODEL, "tools": [tool], "parallel_tool_calls": False}
    first = client.responses.create(**given, input="Weather?", tool_choice={"type": "function", "name": "weather"})
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns: Any = [{"role": "user", "content": "Weather?"}, *(item.to_dict() for item in first.output), output]
    after = client.responses.create(**given, input=turns, max_output_tokens=5)

    assert after.status == "incomplete"
    assert after.output_text
    again: Any = [*turns, *(item.to_dict() for item in after.output), {"role": "user", "content": "And now?"}]
    assert client.responses.create(**given, input=again, max_output_tokens=5).output_text


def test_a_response_is_json_of_a_schema(client: openai.OpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False  # or a model that knows nothing writes on until its tokens are used up
    made = client.responses.create(
        model=MODEL, input="Is it?", text={"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    )

    assert isinstance(json.loads(made.output_text)["ok"], bool)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": "x " * 3000}, "input"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": "x " * 3000, "stream": True}, "input"),
    ],
)
def test_a_response_that_cannot_be_made_is_refused_by_its_name(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(**{"model": MODEL, "input": "Hello", **fields})

    assert refusal.value.param == param


def test_the_gateway_passes_on_what_the_worker_says(system: System, client: openai.OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 20, "seed": 5}
    direct = client.chat.completions.create(**given).choices[0].message.content
    with openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as through:
        chunks = list(through.chat.completions.create(**given, stream=True))
        response = through.responses.create(model=MODEL, input="Hello", max_output_tokens=5)
        completion = through.completions.create(model=MODEL, prompt="the", max_tokens=5)
        with pytest.raises(openai.BadRequestError) as refusal:
            through.chat.completions.create(**{**given, "messages": [{"role": "user", "content": "x " * 3000}]})

    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == direct
    assert response.output_text
    assert completion.choices[0].text
    assert (refusal.value.param, refusal.value.code) == ("messages", "context_length_exceeded")
