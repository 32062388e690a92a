"""The image contracts. Source: OpenAI's images API and the Stable Diffusion pipelines' own parameters.

What OpenAI has and we do not is refused by its name, unless its value is the default; what changes nothing is accepted.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, field_validator

from services.schema import MAX_SEED, AdaptedRequest, Guidance, MediaRequest, Prompt, SchedulerName, Size, Steps

MAX_PICTURES = 10
MAX_PARTIAL_IMAGES = 3

Scheduler = Annotated[
    SchedulerName,
    Field(description="the noise schedule's solver; without it the checkpoint's own"),
]
Strength = Annotated[float, Field(gt=0, le=1, description="how far the picture may be left behind; 1: altogether")]
OutputFormat = Literal["png", "webp", "jpeg"]
Compression = Annotated[int, Field(ge=0, le=100, description="the quality of jpeg and webp; 100 where it is left out")]
Hint = Annotated[str, StringConstraints(max_length=512)]
Unused = Field(exclude=True, description="accepted and not used")


def nothing_if_auto(value: object) -> object:
    """Take `auto` for what it says: the model's default."""
    return None if value == "auto" else value


Auto = BeforeValidator(nothing_if_auto, json_schema_input_type=Size | Literal["auto"])


class ImageRequest(MediaRequest, AdaptedRequest):
    """Body of `POST /v1/images/generations`; what is left out takes the model's default.

    Of `n` pictures the first has the request's seed, and each further one the next number.
    """

    prompt: Prompt
    negative_prompt: Prompt | None = None
    size: Annotated[Size | None, Auto] = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: Scheduler | None = None
    output_format: OutputFormat | None = None
    output_compression: Compression | None = None
    stream: bool | None = None
    response_format: Literal["b64_json", "url"] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES, description="sketches on the way")] | None = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(exclude=True)] = None
    moderation: Annotated[Literal["auto"] | None, Field(exclude=True)] = None
    quality: Annotated[Literal["auto", "standard"] | None, Field(exclude=True)] = None
    style: Annotated[Literal["vivid"] | None, Field(exclude=True)] = None
    safety_identifier: Annotated[Hint | None, Unused] = None
    user: Annotated[Hint | None, Unused] = None

    @field_validator("response_format")
    @classmethod
    def check_form(cls, form: str | None, others: ValidationInfo) -> str | None:
        """Refuse links in a stream: its events have no place for them."""
        if form == "url" and others.data.get("stream"):
            raise ValueError("a stream brings its picture in base64; do not stream, or leave this out")
        return form

    @field_validator("n")
    @classmethod
    def check_number(cls, n: int | None, others: ValidationInfo) -> int | None:
        """Refuse several pictures in one stream: its events do not say which is which."""
        if others.data.get("stream") and n is not None and n > 1:
            raise ValueError("a stream shows one picture; ask for one, or do not stream")
        return n

    @field_validator("partial_images")
    @classmethod
    def check_sketches(cls, number: int | None, others: ValidationInfo) -> int | None:
        """Refuse sketches where nobody would see them."""
        if number and not others.data.get("stream"):
            raise ValueError("sketches come with stream alone")
        return number

    @field_validator("output_compression")
    @classmethod
    def check_compression(cls, compression: int | None, others: ValidationInfo) -> int | None:
        """Refuse losses where the format has none."""
        if compression not in (None, 100) and others.data.get("output_format") in (None, "png"):
            raise ValueError("PNG loses nothing; ask for jpeg or webp in output_format")
        return compression


class EditRequest(ImageRequest):
    """The form fields of `POST /v1/images/edits`, beside the files `image` and `mask`.

    Both are cropped to the size's aspect ratio. What a mask shows white, or transparent, is painted anew.
    """

    strength: Strength | None = None
    input_fidelity: Annotated[Literal["low"] | None, Field(exclude=True)] = None


class ImageJob(ImageRequest):
    """A request with the model's defaults in."""

    size: Size
    num_inference_steps: Steps
    guidance_scale: Guidance


class EditJob(ImageJob):
    """An edit with the model's defaults in."""

    strength: Strength | None = None  # the library's: all of what a mask shows, 0.8 of a whole picture


def seed_of(seed: int, number: int) -> int:
    """The seed of a request's picture `number`, counted from 0: what makes it again alone."""
    return (seed + number) % (MAX_SEED + 1)


def chosen(job: ImageJob) -> dict[str, Any]:
    """Name what the picture was made with, besides model, seed and prompts."""
    names = {"size", "num_inference_steps", "guidance_scale", "scheduler", "strength", "adapter"}
    return job.model_dump(include=names, exclude_none=True)


def described(size: str, output_format: OutputFormat | None) -> dict[str, Any]:
    """What OpenAI's answers say about a picture."""
    return {"size": size, "background": "opaque", "output_format": output_format or "png"}


def usage(made: Mapping[str, float]) -> dict[str, Any]:
    """Say what was made: pixel-steps; OpenAI's names are there, and of tokens there are none."""
    return {
        "input_tokens": 0,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        "total_tokens": 0,
        **made,
    }
