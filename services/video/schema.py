"""The video contract: a picture in, a film that starts with it out."""

from typing import Annotated

from pydantic import Field

from services.schema import GenerationRequest, Size, Steps

NumFrames = Annotated[int, Field(ge=2, le=64)]  # of one frame the pipeline makes none: its guidance ramp is empty


class VideoRequest(GenerationRequest):
    """The form fields of `POST /v1/videos`, beside the file `input_reference` (PNG, JPEG, WebP, GIF or BMP).

    The picture is cropped to the film's aspect ratio. What is left out takes the model's default.
    """

    size: Size | None = None
    num_frames: NumFrames | None = None
    fps: Annotated[int, Field(ge=1, le=30, description="frames a second of the film")] | None = None
    num_inference_steps: Steps | None = None
    motion_bucket_id: Annotated[int, Field(ge=1, le=255, description="how much moves")] | None = None


class VideoJob(VideoRequest):
    """A request with the model's defaults in; `decode_chunk_size` frames are decoded at a time."""

    size: Size
    num_frames: NumFrames
    fps: int
    num_inference_steps: Steps
    motion_bucket_id: int
    decode_chunk_size: Annotated[int, Field(ge=1)]
