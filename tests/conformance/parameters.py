"""Every parameter of the SDK's methods, with a value to try; what comes of it decides where the table has it."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import openai

from tests.conformance.calls import BARK, CHAT, HELLO, SCHEMA, SD, SVD, TOOL
from tests.live.pictures import png

Fate = Literal["supported", "unused", "default", "refused"]
OF_THE_SDK = frozenset({"extra_headers", "extra_query", "extra_body", "timeout", "poll_interval_ms"})


@dataclass(frozen=True)
class Try:
    """A value, and what the request needs besides for it to make sense.

    Args:
        value: to be sent.
        other: another one, where a default may be sent and nothing else.
        along: further arguments.
    """

    value: Any
    other: Any = None
    along: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method, what it is called with, and a value for each of its other parameters."""

    name: str
    path: str
    base: Mapping[str, Any]
    tries: Mapping[str, Any]
    content: Callable[[Any], Any]
    """What must be the same where a parameter is not used."""

    def parameters(self, sdk: openai.OpenAI) -> list[str]:
        signature = inspect.signature(attrgetter(self.name)(sdk))
        return [name for name in signature.parameters if name not in OF_THE_SDK]

    def ask(self, sdk: openai.OpenAI, **more: Any) -> Any:
        extra = {**self.base.get("extra_body", {}), **more.pop("extra_body", {})}
        return self.content(attrgetter(self.name)(sdk)(**{**self.base, **more, "extra_body": extra}))


FUNCTION = TOOL["function"]
NAMED_TOOL = {"type": "function", **FUNCTION}  # type: ignore[dict-item]
OMITTED = openai.omit
STREAM = {"stream": True}
OPTIONS = Try({"include_obfuscation": False}, along=STREAM)
HINTS = {
    "prompt_cache_key": "a",
    "prompt_cache_options": {"ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "a",
    "user": "a",
}
PICTURES = {
    "background": Try("opaque", "transparent"),
    "complexity": "low",
    "frame_count": 2,
    "frame_duration_ms": 100,
    "n": 2,
    "output_compression": Try(50, along={"output_format": "jpeg"}),
    "output_format": "webp",
    "partial_images": Try(1, along=STREAM),
    "quality": Try("auto", "high"),
    "response_format": "b64_json",
    "safety_identifier": "a",
    "size": "128x64",
    "stream": True,
    "svg": {"minify": True},
    "user": "a",
}


def text_of(made: Any) -> Any:
    return None if isinstance(made, openai.Stream) else made.choices[0]


METHODS: tuple[Method, ...] = (
    Method(
        "chat.completions.create",
        "/v1/chat/completions",
        {"model": CHAT, "messages": HELLO, "max_tokens": 3, "seed": 5},
        {
            "audio": {"voice": "a", "format": "wav"},
            "frequency_penalty": 0.5,
            "function_call": "auto",
            "functions": [FUNCTION],
            "logit_bias": {"5": 1},
            "logprobs": True,
            "max_completion_tokens": Try(3, along={"max_tokens": OMITTED}),
            "metadata": {"a": "b"},
            "modalities": ["text", "audio"],
            "moderation": {"model": "a"},
            "n": 2,
            "parallel_tool_calls": Try(False, along={"tools": [TOOL]}),
            "prediction": {"type": "content", "content": "a"},
            "presence_penalty": 0.5,
            "reasoning_effort": "low",
            "response_format": {"type": "json_object"},
            "service_tier": "auto",
            "stop": "a",
            "store": True,
            "stream": True,
            "stream_options": OPTIONS,
            "temperature": 0.5,
            "tool_choice": Try("auto", along={"tools": [TOOL]}),
            "tools": [TOOL],
            "top_logprobs": Try(2, along={"logprobs": True}),
            "top_p": 0.5,
            "verbosity": "low",
            "web_search_options": {},
            **HINTS,
        },
        text_of,
    ),
    Method(
        "completions.create",
        "/v1/completions",
        {"model": CHAT, "prompt": "the", "max_tokens": 3, "seed": 5},
        {
            "best_of": 2,
            "echo": True,
            "frequency_penalty": 0.5,
            "logit_bias": {"5": 1},
            "logprobs": 1,
            "n": 2,
            "presence_penalty": 0.5,
            "stop": "a",
            "stream": True,
            "stream_options": OPTIONS,
            "suffix": "a",
            "temperature": 0.5,
            "top_p": 0.5,
            "user": "a",
        },
        text_of,
    ),
    Method(
        "responses.create",
        "/v1/responses",
        {"model": CHAT, "input": "Hello", "max_output_tokens": 3, "extra_body": {"seed": 5}},
        {
            "access_programs": ["a"],
            "background": Try(False, True),
            "background_options": {},
            "context_management": [],
            "conversation": "conv_1",
            "image": {},
            "include": ["message.output_text.logprobs"],
            "instructions": "Be brief.",
            "max_tool_calls": 1,
            "metadata": {"a": "b"},
            "moderation": {"model": "a"},
            "parallel_tool_calls": Try(False, along={"tools": [NAMED_TOOL]}),
            "previous_response_id": "resp_1",
            "prompt": {"id": "a"},
            "reasoning": {"effort": "low"},
            "service_tier": "auto",
            "store": Try(False, True),
            "stream": True,
            "stream_options": Try({"include_obfuscation": False}, along=STREAM),
            "temperature": 0.5,
            "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
            "tool_choice": Try("auto", along={"tools": [NAMED_TOOL]}),
            "tools": [NAMED_TOOL],
            "top_logprobs": 2,
            "top_p": 0.5,
            "truncation": Try("disabled", "auto"),
            **HINTS,
        },
        lambda made: getattr(made, "output_text", None),
    ),
    Method(
        "images.generate",
        "/v1/images/generations",
        {"model": SD, "prompt": "a cat", "extra_body": {"num_inference_steps": 2, "seed": 7}},
        {**PICTURES, "moderation": Try("auto", "low"), "style": Try("vivid", "natural")},
        lambda made: getattr(made, "data", None),
    ),
    Method(
        "images.edit",
        "/v1/images/edits",
        {"model": SD, "image": png(), "prompt": "a cat", "extra_body": {"num_inference_steps": 2, "seed": 7}},
        {**PICTURES, "input_fidelity": Try("low", "high"), "markup": png(), "mask": png()},
        lambda made: getattr(made, "data", None),
    ),
    Method(
        "audio.speech.create",
        "/v1/audio/speech",
        {"model": BARK, "voice": "v2/en_speaker_1", "input": "One.", "extra_body": {"seed": 3}},
        {
            "instructions": Try("", "Whisper."),
            "response_format": "wav",
            "speed": 2.0,
            "stream_format": "sse",
        },
        lambda answer: answer.content,
    ),
    Method(
        "videos.create",
        "/v1/videos",
        {"model": SVD, "prompt": "", "input_reference": png(), "extra_body": {"num_inference_steps": 2}},
        {"seconds": "1", "size": "64x64"},
        lambda film: film.id,
    ),
)


@dataclass(frozen=True)
class Fates:
    """What comes of a method's parameters, and what may be sent besides."""

    of: Mapping[str, Fate]
    besides: list[str]


def fates(sdk: openai.OpenAI, method: Method, contract: Mapping[str, Any]) -> Fates:
    """Try every parameter; `contract` has the fields of the body, as the server's OpenAPI document says."""
    known = method.parameters(sdk)
    plain = method.ask(sdk)
    found: dict[str, Fate] = {}
    for name in known:
        given = method.tries.get(name)
        if given is None:
            assert name in {**method.base, **method.base.get("extra_body", {})}, f"{method.name} has {name}: try it"
            found[name] = "supported"
        else:
            one = given if isinstance(given, Try) else Try(given)
            found[name] = fate(sdk, method, name, one, plain, contract)
    return Fates(found, sorted(set(contract) - set(known)))


def fate(sdk: openai.OpenAI, method: Method, name: str, one: Try, plain: Any, contract: Mapping[str, Any]) -> Fate:
    try:
        made = method.ask(sdk, **{**one.along, name: one.value})
    except openai.BadRequestError as error:
        if re.split(r"[.\[]", error.param or "")[0] != name:
            raise AssertionError(f"{method.name}: {name} is refused as {error.param}") from error
        return "refused"
    if one.other is not None:
        assert fate(sdk, method, name, Try(one.other, along=one.along), plain, contract) == "refused", name
        return "default"
    if "not used" in str(contract[name]):
        assert made == plain, f"{method.name}: {name} is said to change nothing"
        return "unused"
    return "supported"


def contract_of(document: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The fields of a route's body, by the OpenAPI document."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    media = next(content[each] for each in ("multipart/form-data", "application/json") if each in content)
    return fields_of(document, media["schema"])


def fields_of(document: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        found |= fields_of(document, part)
    if "$ref" in schema:
        found |= fields_of(document, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]])
    return found
