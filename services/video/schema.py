"""The video contract: a picture or a text in, a film out."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from services.schema import Guidance, MediaRequest, Prompt, Size, Steps, parse_size

NumFrames = Annotated[int, Field(ge=2, le=64)]  # of one frame the pipeline makes none: its guidance ramp is empty


Format = Literal["mp4", "gif", "webp"]


def check_is_absent(value: object) -> None:
    """Refuse what is for other models: ignoring it would make another film than was asked for."""
    if value is not None:
        raise ValueError("this model has no such parameter")


def check_num_frames(value: int) -> int:
    """Refuse a number that Wan would round: its autoencoder takes the first frame alone, then four at a time."""
    if value % 4 != 1:
        raise ValueError("must be 1 more than a multiple of 4 for this model, such as 81")
    return value


def check_size(value: str) -> str:
    """Refuse before it is loaded what no Wan cuts into patches: of two by two latents of eight pixels, or of more."""
    if any(side % 16 for side in parse_size(value)):
        raise ValueError("width and height must be divisible by 16 for this model")
    return value


Absent = Annotated[None, BeforeValidator(check_is_absent)]


class VideoRequest(MediaRequest):
    """The form fields of `POST /v1/videos`, beside the file `input_reference` (PNG, JPEG, WebP, GIF or BMP).

    A model films either a picture, which is cropped to the film's aspect ratio, or a prompt. What is left out takes the
    model's default.
    """

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    size: Size | None = None
    num_frames: Annotated[int, Field(ge=1, le=161)] | None = None
    fps: Annotated[int, Field(ge=1, le=30, description="frames a second of the film")] | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    motion_bucket_id: Annotated[int, Field(ge=1, le=255, description="how much moves")] | None = None
    output_format: Format | None = None


class VideoJob(VideoRequest):
    """A film from a picture, the model's defaults in; `decode_chunk_size` frames are decoded at a time."""

    prompt: Absent = None
    negative_prompt: Absent = None
    size: Size
    num_frames: NumFrames
    fps: int
    num_inference_steps: Steps
    guidance_scale: Absent = None
    motion_bucket_id: int
    decode_chunk_size: Annotated[int, Field(ge=1)]


class TextVideoJob(VideoRequest):
    """A film from a prompt, the model's defaults in."""

    prompt: Prompt
    size: Annotated[Size, AfterValidator(check_size)]
    num_frames: Annotated[int, Field(ge=1, le=161), AfterValidator(check_num_frames)]
    fps: int
    num_inference_steps: Steps
    guidance_scale: Guidance
    motion_bucket_id: Absent = None


def chosen(job: VideoRequest) -> dict[str, Any]:
    """Name what a film was made with, besides model, seed and prompts."""
    names = {"size", "num_frames", "fps", "num_inference_steps", "guidance_scale", "motion_bucket_id"}
    return job.model_dump(include=names, exclude_none=True)
