"""The image contract. Source: OpenAI's images API and the Stable Diffusion pipelines' own parameters."""

from typing import Annotated, Literal

from pydantic import Field

from services.schema import GenerationRequest, Guidance, Prompt, Size, Steps

Scheduler = Annotated[
    Literal["ddim", "dpmpp_2m", "euler", "euler_a", "pndm"],
    Field(description="the noise schedule's solver; without it the checkpoint's own"),
]
Strength = Annotated[float, Field(gt=0, le=1, description="how far the picture may be left behind; 1: altogether")]


class ImageRequest(GenerationRequest):
    """Body of `POST /v1/images/generations`; what is left out takes the model's default."""

    prompt: Prompt
    negative_prompt: Prompt | None = None
    size: Size | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: Scheduler | None = None


class EditRequest(ImageRequest):
    """The form fields of `POST /v1/images/edits`, beside the files `image` and `mask`.

    Both are cropped to the size's aspect ratio. What a mask shows white, or transparent, is painted anew.
    """

    strength: Strength | None = None


class ImageJob(ImageRequest):
    """A request with the model's defaults in."""

    size: Size
    num_inference_steps: Steps
    guidance_scale: Guidance


class EditJob(ImageJob):
    """An edit with the model's defaults in."""

    strength: Strength | None = None  # the library's: all of what a mask shows, 0.8 of a whole picture
