"""What the official SDK is made to do: each call written once, for the sync and the async client."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.live.pictures import png

CHAT, BARK, SD, SVD = "tinyllama-1.1b-chat", "bark-small", "tiny-sd", "stable-video-diffusion-img2vid"
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
DRAWN = {"num_inference_steps": 4, "seed": 7}


@dataclass
class Given:
    """What there is before a call: films, one finished and some that may go."""

    film: str
    spare: list[str]

    def last_spare(self) -> str:
        return self.spare.pop()


@dataclass(frozen=True)
class Call:
    """A method of the SDK, called in one way.

    Args:
        method: as the SDK names it.
        ask: calls it.
        is_right: whether what came of it is as the SDK's users expect; of a stream, the list of its pieces.
        way: besides plainly: what the table says of it.
    """

    method: str
    ask: Callable[[Any, Given], Any]
    is_right: Callable[[Any], bool]
    way: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.way}".strip().replace(" ", "-")


def text_of(chunks: Sequence[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def has_called(message: Any) -> bool:
    (call,) = message.tool_calls
    return call.type == "function" and call.function.name == "weather" and "ok" in call.function.arguments


def chat(sdk: Any, **more: Any) -> Any:
    return sdk.chat.completions.create(model=CHAT, messages=HELLO, **{"max_tokens": 6, "seed": 5, **more})


def types_of(events: Sequence[Any]) -> list[str]:
    return [event.type for event in events]


def respond(sdk: Any, **more: Any) -> Any:
    return sdk.responses.create(model=CHAT, input="Hello", max_output_tokens=6, **more)


def draw(sdk: Any, **more: Any) -> Any:
    return sdk.images.generate(model=SD, prompt="a cat", **{"extra_body": DRAWN, **more})


def edit(sdk: Any, **more: Any) -> Any:
    return sdk.images.edit(model=SD, prompt="a cat", **{"image": png(), "extra_body": DRAWN, **more})


def speak(speech: Any, **more: Any) -> Any:
    return speech.create(model=BARK, voice="v2/en_speaker_1", **{"input": "One.", **more})


def spoken_as(form: str) -> Callable[[Any, Given], Any]:
    return lambda sdk, _: speak(sdk.audio.speech, response_format=form)


def fetched(variant: str) -> Callable[[Any, Given], Any]:
    return lambda sdk, given: sdk.videos.download_content(given.film, variant=variant)


def begins(*magic: bytes) -> Callable[[Any], bool]:
    return lambda answer: answer.read().startswith(magic)


def is_film(answer: Any) -> bool:
    return bool(answer.read()[4:8] == b"ftyp")


STREAMED = "streamed"
TOOLS = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}}
TWELVE = {**DRAWN, "num_inference_steps": 12}
WITH_SKETCHES: dict[str, Any] = {"stream": True, "partial_images": 2, "extra_body": TWELVE}
SKETCHES = ["partial_image", "partial_image", "completed"]
FILM = {"num_frames": "2", "num_inference_steps": "2"}
FORMATS = {
    "mp3": (b"ID3", b"\xff"),
    "opus": (b"OggS",),
    "aac": (b"ID3", b"\xff"),
    "flac": (b"fLaC",),
    "wav": (b"RIFF",),
}

CALLS: tuple[Call, ...] = (
    Call("models.list", lambda sdk, _: sdk.models.list(), lambda page: SD in {each.id for each in page.data}),
    Call("models.retrieve", lambda sdk, _: sdk.models.retrieve(SD), lambda model: model.id == SD),
    Call(
        "chat.completions.create",
        lambda sdk, _: chat(sdk, n=2, stop=["zebra"]),
        lambda made: [choice.index for choice in made.choices] == [0, 1] and made.usage.completion_tokens > 0,
    ),
    Call(
        "chat.completions.create",
        lambda sdk, _: chat(sdk, stream=True, stream_options={"include_usage": True}),
        lambda chunks: bool(text_of(chunks)) and chunks[-1].usage.completion_tokens > 0,
        STREAMED,
    ),
    Call(
        "chat.completions.create",
        lambda sdk, _: chat(sdk, **TOOLS),
        lambda made: has_called(made.choices[0].message),
        "with tools",
    ),
    Call(
        "chat.completions.create",
        lambda sdk, _: chat(sdk, **JSON, max_tokens=200),
        lambda made: '"ok"' in made.choices[0].message.content,
        "with a JSON schema",
    ),
    Call(
        "chat.completions.create",
        lambda sdk, _: chat(sdk, logprobs=True, top_logprobs=2),
        lambda made: all(len(token.top_logprobs) == 2 for token in made.choices[0].logprobs.content),
        "with logprobs",
    ),
    Call(
        "chat.completions.stream",
        lambda sdk, _: sdk.chat.completions.stream(model=CHAT, messages=HELLO, **TOOLS),
        lambda events: "tool_calls.function.arguments.done" in types_of(events),
        STREAMED,
    ),
    Call(
        "completions.create",
        lambda sdk, _: sdk.completions.create(model=CHAT, prompt="the", max_tokens=4, logprobs=1, echo=True),
        lambda made: made.choices[0].text.startswith("the") and made.object == "text_completion",
    ),
    Call(
        "completions.create",
        lambda sdk, _: sdk.completions.create(model=CHAT, prompt="the", max_tokens=4, stream=True),
        lambda chunks: chunks[-1].choices[0].finish_reason in ("length", "stop"),
        STREAMED,
    ),
    Call(
        "responses.create",
        lambda sdk, _: respond(sdk),
        lambda made: bool(made.output_text) and made.usage.output_tokens > 0,
    ),
    Call(
        "responses.create",
        lambda sdk, _: respond(sdk, stream=True),
        lambda events: (
            types_of(events)[0] == "response.created"
            and types_of(events)[-1] in ("response.completed", "response.incomplete")
        ),
        STREAMED,
    ),
    Call(
        "images.generate", lambda sdk, _: draw(sdk, n=2), lambda made: len({each.b64_json for each in made.data}) == 2
    ),
    Call(
        "images.generate",
        lambda sdk, _: draw(sdk, **WITH_SKETCHES),
        lambda events: types_of(events) == [f"image_generation.{each}" for each in SKETCHES],
        STREAMED,
    ),
    Call("images.edit", lambda sdk, _: edit(sdk, image=[png()], mask=png()), lambda made: bool(made.data[0].b64_json)),
    Call(
        "images.edit",
        lambda sdk, _: edit(sdk, **WITH_SKETCHES),
        lambda events: types_of(events) == [f"image_edit.{each}" for each in SKETCHES],
        STREAMED,
    ),
    *(
        Call(
            "audio.speech.create",
            spoken_as(form),
            begins(*magic),
            form,
        )
        for form, magic in FORMATS.items()
    ),
    Call(
        "audio.speech.create",
        lambda sdk, _: speak(sdk.audio.speech, response_format="pcm"),
        lambda answer: len(answer.read()) > 10_000,
        "pcm",
    ),
    Call(
        "audio.speech.create",
        lambda sdk, _: speak(sdk.audio.speech, response_format="pcm", stream_format="sse"),
        lambda answer: "speech.audio.delta" in answer.text and "speech.audio.done" in answer.text,
        "as events",
    ),
    Call(
        "audio.speech.with_streaming_response.create",
        lambda sdk, _: speak(sdk.audio.speech.with_streaming_response, response_format="pcm", input="One. Two."),
        lambda pieces: len(pieces) > 1,
        STREAMED,
    ),
    Call(
        "videos.create",
        lambda sdk, _: sdk.videos.create(prompt="", model=SVD, input_reference=("a.png", png()), extra_body=FILM),
        lambda film: film.status in ("queued", "in_progress"),
    ),
    Call(
        "videos.create_and_poll",
        lambda sdk, _: sdk.videos.create_and_poll(prompt="", input_reference=("a.png", png()), extra_body=FILM),
        lambda film: (film.status, film.progress) == ("completed", 100),
    ),
    Call("videos.poll", lambda sdk, given: sdk.videos.poll(given.film), lambda film: film.status == "completed"),
    Call(
        "videos.retrieve",
        lambda sdk, given: sdk.videos.retrieve(given.film),
        lambda film: film.object == "video" and film.seconds is not None,
    ),
    Call(
        "videos.list",
        lambda sdk, _: sdk.videos.list(limit=1, order="asc"),
        lambda page: len(page.data) == 1 and page.has_more,
    ),
    Call("videos.download_content", lambda sdk, given: sdk.videos.download_content(given.film), is_film),
    *(
        Call(
            "videos.download_content",
            fetched(variant),
            begins(b"\xff\xd8"),
            f"as a {variant}",
        )
        for variant in ("thumbnail", "spritesheet")
    ),
    Call("videos.delete", lambda sdk, given: sdk.videos.delete(given.last_spare()), lambda gone: gone.deleted),
    Call(
        "content_provenance_checks.create",
        lambda sdk, _: sdk.content_provenance_checks.create(file=png()),
        lambda check: check.object == "content_provenance_check",
    ),
)

# What the SDK has and Atelier does not: each answers with a 404 that says so.
UNSERVED: dict[str, Callable[[Any], Any]] = {
    "audio.transcriptions.create": lambda sdk: sdk.audio.transcriptions.create(model="whisper-1", file=b"x"),
    "audio.translations.create": lambda sdk: sdk.audio.translations.create(model="whisper-1", file=b"x"),
    "batches.list": lambda sdk: sdk.batches.list(),
    "chat.completions.retrieve": lambda sdk: sdk.chat.completions.retrieve("chatcmpl-1"),
    "embeddings.create": lambda sdk: sdk.embeddings.create(model="a", input="b"),
    "files.list": lambda sdk: sdk.files.list(),
    "images.create_variation": lambda sdk: sdk.images.create_variation(image=png()),
    "moderations.create": lambda sdk: sdk.moderations.create(input="a"),
    "responses.retrieve": lambda sdk: sdk.responses.retrieve("resp_1"),
    "videos.remix": lambda sdk: sdk.videos.remix("video_1", prompt="a"),
}


async def settled(result: Any) -> Any:
    """Wait for what the async client gave; read it where it is a stream."""
    if hasattr(result, "__aenter__"):
        async with result as entered:
            return await settled_stream(entered)
    if inspect.isawaitable(result):
        result = await result
    return await settled_stream(result) if hasattr(result, "__aenter__") else result


async def settled_stream(stream: Any) -> list[Any]:
    """All pieces of a stream: events, or bytes."""
    pieces = stream if hasattr(stream, "__aiter__") else stream.http_response.aiter_raw()
    return [piece async for piece in pieces]


def read(result: Any) -> Any:
    """Read what the sync client gave, where it is a stream."""
    if not hasattr(result, "__enter__"):
        return result
    with result as entered:
        return list(entered if hasattr(entered, "__iter__") else entered.http_response.iter_raw())
