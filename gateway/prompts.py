"""What of a request a model reads; knows the workers' contracts and OpenAI's words for them, and no route."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic_core

from services.audio.schema import SpeechRequest
from services.image.schema import ImageRequest
from services.mesh.schema import MeshRequest
from services.schema import GenerationRequest
from services.text.schema import (
    CallItem,
    ChatRequest,
    CompletionRequest,
    Message,
    MessageItem,
    OutputItem,
    ResponseRequest,
    SchemaFormat,
)
from services.video.schema import VideoRequest

# The words of the API itself, as keys or as roles and types: nobody's prompt.
VOCABULARY = (
    "role type content text name arguments function functions tool tools tool_calls tool_call_id call_id id status "
    "parameters properties required description items enum anyOf additionalProperties schema json_schema strict format "
    "messages input prompt instructions system developer user assistant message function_call function_call_output "
    "input_text output_text image_url input_image input_audio input_file file url detail data object string number "
    "integer boolean array null json_object output refusal"
)
# What a provider's model does not read; what is not named here counts as read.
UNREAD = (
    "model user metadata service_tier safety_identifier prompt_cache_key prompt_cache_retention reasoning "
    "reasoning_effort verbosity modalities include truncation previous_response_id stream_options tool_choice "
    "function_call stop logit_bias audio"
)
WORDS, HINTS = frozenset(VOCABULARY.split()), frozenset(UNREAD.split())
SCHEMAS = frozenset({"response_format", "text"})  # of documents
IDS = frozenset({"id", "call_id", "tool_call_id", "name", "role", "type", "status", "detail"})  # of a message
MEDIA = frozenset({"url", "image_url", "data", "file_data"})  # where pictures and sounds stand


@dataclass(frozen=True)
class Passage:
    """What was written in one go: a message, a tool, a call.

    Args:
        texts: of it, each without escapes, and the keys too.
        is_prose: whether it says something by itself; a name does not.
        is_readable: False: it is written in numbers of tokens.
    """

    texts: tuple[str, ...]
    is_prose: bool = True
    is_readable: bool = True


def prompts_of(body: GenerationRequest) -> Sequence[Passage]:
    """Return all of `body` that the caller wrote and a model reads."""
    match body:
        case ChatRequest():
            found = _of_chat(body)
        case ResponseRequest():
            found = _of_items(body)
        case CompletionRequest():
            found = map(_prose, [body.prompt])
        case SpeechRequest():
            found = map(_prose, [body.input])
        case ImageRequest() | VideoRequest():
            found = map(_prose, [body.prompt, body.negative_prompt])
        case MeshRequest():
            found = map(_prose, [body.prompt])
        case _:
            raise TypeError(body)
    return [passage for passage in found if passage.texts]


def outside_prompts(body: Mapping[str, Any]) -> Sequence[Passage]:
    """Return all that is written in a body of a provider's own making, wherever it stands."""
    return [
        passage for item in body.items() for passage in _of_field(*item) if passage.texts or not passage.is_readable
    ]


def _of_chat(body: ChatRequest) -> Iterator[Passage]:
    for message in body.messages:
        yield _prose(message.content)
        yield from _calls(message)
    yield from map(_whole, body.tools or ())
    if isinstance(body.response_format, SchemaFormat):
        yield _whole(body.response_format)


def _calls(message: Message) -> Iterator[Passage]:
    for call in message.tool_calls or ():
        yield _whole(call.function)


def _of_items(body: ResponseRequest) -> Iterator[Passage]:
    yield _prose(body.instructions)
    for item in body.input:
        match item:
            case MessageItem():
                yield _prose(item.content)
            case CallItem():
                yield Passage(tuple(_leaves({"name": item.name, "arguments": item.arguments})))
            case OutputItem():
                yield _prose(item.output)
    yield from map(_whole, body.tools or ())
    if body.text is not None and body.text.format is not None:
        yield _whole(body.text.format)


def _prose(text: str | None) -> Passage:
    return Passage((text,) if text else ())


def _whole(model: Any) -> Passage:
    return Passage(tuple(_leaves(model.model_dump(exclude_none=True, by_alias=True))))


def _of_field(name: str, value: Any) -> Iterator[Passage]:
    """Read a field of a provider's body."""
    if name not in WORDS | HINTS | SCHEMAS:
        yield Passage((name,), is_prose=False)
    if name in HINTS:
        yield Passage(tuple(_leaves(value)), is_prose=False)
    elif name in SCHEMAS:
        yield Passage(tuple(_leaves(value)))
    else:
        yield from _of_message(value)
        if "prompt" in name or name == "input":
            yield Passage((), is_readable=not _has_tokens(value))


def _of_message(value: Any) -> Iterator[Passage]:
    """Read a message, or what stands where one could: a text, a tool, tokens."""
    match value:
        case list():
            yield from (passage for each in value for passage in _of_message(each))
        case {"function": _} | {"type": "function" | "function_call"}:
            yield Passage(tuple(_leaves(value)))
        case dict():
            for name, part in value.items():
                yield from _of_part(name, part)
        case str():
            yield _prose(value)


def _has_tokens(value: Any) -> bool:
    """Whether a prompt is written in numbers."""
    return isinstance(value, list) and any(isinstance(each, int | float) or _has_tokens(each) for each in value)


def _of_part(name: str, value: Any) -> Iterator[Passage]:
    """Read what a message has under a name; texts in parts are one."""
    if name not in WORDS:
        yield Passage((name,), is_prose=False)
    if name in IDS:
        yield Passage(tuple(_leaves({name: value})), is_prose=False)
    elif isinstance(value, list) and all(isinstance(part, dict) and "function" not in part for part in value):
        texts = [part["text"] for part in value if isinstance(part.get("text"), str)]
        yield _prose("".join(texts))
        others = [
            {key: each for key, each in part.items() if key != "text" or not isinstance(each, str)} for part in value
        ]
        yield Passage(tuple(_leaves(others)), is_prose=False)
    elif isinstance(value, list):
        yield from (Passage(tuple(_leaves(each))) for each in value)
    else:
        yield Passage(tuple(_leaves({name: value} if isinstance(value, str) else value)))


def _leaves(value: Any) -> Iterator[str]:
    """Yield every text and every key in JSON, and in the JSON that calls have as text in it."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, found = waiting.pop()
        match found:
            case str() if found:
                yield from _written(name, found)
                if name == "arguments":
                    waiting.append(("", _decoded(found)))
            case list() | tuple():
                waiting += ((name, each) for each in reversed(found))
            case dict():
                waiting += reversed(found.items())
                yield from (key for key in found if key not in WORDS)


def _written(name: str, text: str) -> Iterable[str]:
    if name in MEDIA and (text.startswith("data:") or name in ("data", "file_data")):
        return ()
    return () if name in ("role", "type") and text in WORDS else (text,)


def _decoded(arguments: str) -> Any:
    """Read a call's arguments; what is no JSON says nothing more."""
    try:
        return pydantic_core.from_json(arguments)
    except ValueError:
        return None
