"""The speech contract. Source: OpenAI's audio API; `seed` is ours."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from services.schema import Body, MediaRequest, check_is_text

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Input = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(check_is_text)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Speed = Annotated[float, Field(ge=0.25, le=4, description="2 takes half as long; the pitch stays")]


class VoiceObject(Body):
    """A voice as OpenAI names custom ones."""

    id: Name


def named(value: object) -> object:
    """Read a voice given as an object by its id."""
    return VoiceObject.model_validate(value).id if isinstance(value, dict) else value


def check_is_empty(value: str) -> str:
    """Refuse instructions: they would change how it is said, and the models here take none."""
    if value.strip():
        raise ValueError("the models here cannot be told how to say it; leave this out and choose a voice")
    return value


Voice = Annotated[Name, BeforeValidator(named, json_schema_input_type=Name | VoiceObject)]
Hint = Annotated[str, StringConstraints(max_length=512)]
Unused = Field(exclude=True, description="accepted and not used")


class SpeechRequest(MediaRequest):
    """Body of `POST /v1/audio/speech`.

    `voice` names one of the checkpoint's own presets (`GET /v1/audio/voices`); without it the model chooses a speaker.
    Without `response_format` the caller's `Accept` decides, and without that it is MP3.
    """

    input: Input
    voice: Voice | None = None
    response_format: Format | None = None
    speed: Speed | None = None
    stream_format: Literal["audio", "sse"] | None = None
    instructions: Annotated[Annotated[str, AfterValidator(check_is_empty)] | None, Field(exclude=True)] = None
    safety_identifier: Annotated[Hint | None, Unused] = None
    user: Annotated[Hint | None, Unused] = None


def chosen(job: SpeechRequest) -> dict[str, Any]:
    """Name what the speech was made with, besides model, seed and text."""
    return job.model_dump(include={"voice", "speed"}, exclude_none=True)
