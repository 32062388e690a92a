"""The 3D contract: a text or a picture in, a coloured mesh out."""

import base64
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from services.schema import GenerationRequest, Guidance, Prompt

# The scheduler (Heun) corrects every step but the last by a second call; one step alone would be a blind jump.
MeshSteps = Annotated[int, Field(ge=2, le=200, description="denoising steps; more take longer")]

# Time and memory grow with the cube: 256 takes 8 GB, 192 half of that.
GridSize = Annotated[int, Field(ge=8, le=192, description="cells along each edge of the sampled cube")]


def check_base64(value: str) -> str:
    """Refuse what is not base64; a data URL's prefix is not part of it."""
    try:
        base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError("must be base64") from error
    return value


# Text and not bytes: BentoML takes a field of bytes for an upload.
Base64Picture = Annotated[str, StringConstraints(min_length=4, max_length=34_000_000), AfterValidator(check_base64)]


class MeshRequest(GenerationRequest):
    """Body of `POST /v1/3d/generations`: either `prompt` or `image` (base64 of a PNG, JPEG, WebP, GIF or BMP)."""

    prompt: Prompt | None = None
    image: Base64Picture | None = None
    num_inference_steps: MeshSteps | None = None
    guidance_scale: Guidance | None = None
    grid_size: GridSize | None = None

    @model_validator(mode="after")
    def check_has_one_source(self) -> Self:
        """Refuse both and neither: which one counts would be a guess."""
        if (self.prompt is None) == (self.image is None):
            raise ValueError("give either 'prompt' or 'image'")
        return self


class MeshJob(MeshRequest):
    """A request with the model's defaults in."""

    num_inference_steps: MeshSteps
    guidance_scale: Guidance
    grid_size: GridSize
