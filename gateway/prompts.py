"""What of a request a model reads; knows the workers' contracts, and no route."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.audio.schema import SpeechRequest
from services.image.schema import ImageRequest
from services.mesh.schema import MeshRequest
from services.schema import GenerationRequest
from services.text.schema import CallItem, ChatRequest, CompletionRequest, MessageItem, OutputItem, ResponseRequest
from services.video.schema import VideoRequest


def prompts_of(body: GenerationRequest) -> Sequence[str]:
    """Return all texts of `body` that the caller wrote and a model reads."""
    match body:
        case ChatRequest():
            texts = _of_chat(body)
        case ResponseRequest():
            texts = _of_items(body)
        case CompletionRequest():
            texts = (prompt for prompt in body.prompt if isinstance(prompt, str))
        case SpeechRequest():
            texts = iter([body.input])
        case ImageRequest() | VideoRequest():
            texts = iter([body.prompt, body.negative_prompt])
        case MeshRequest():
            texts = iter([body.prompt])
        case _:
            raise TypeError(body)
    return [text for text in texts if text]


def is_readable(body: GenerationRequest) -> bool:
    """Whether all that a model reads is text; numbers of tokens say nothing to who does not know the model's."""
    return not isinstance(body, CompletionRequest) or all(isinstance(prompt, str) for prompt in body.prompt)


def all_texts(body: Mapping[str, Any]) -> Sequence[str]:
    """Return every text in a body of a provider's own making, wherever it stands."""
    found: list[str] = []
    waiting: list[Any] = list(body.values())
    while waiting:
        match waiting.pop():
            case str(text) if text:
                found.append(text)
            case list() as parts:
                waiting += parts
            case dict() as fields:
                waiting += fields.values()
    return found


def _of_chat(body: ChatRequest) -> Iterator[str | None]:
    for message in body.messages:
        yield message.content
        for call in message.tool_calls or ():
            yield call.function.arguments
    yield from map(_tool, body.tools or ())


def _of_items(body: ResponseRequest) -> Iterator[str | None]:
    yield body.instructions
    for item in body.input:
        match item:
            case MessageItem():
                yield item.content
            case CallItem():
                yield item.arguments
            case OutputItem():
                yield item.output
    yield from map(_tool, body.tools or ())


def _tool(tool: Any) -> str:
    """Write a tool as the model reads it."""
    return str(tool.model_dump_json(exclude_none=True))
