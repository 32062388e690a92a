"""The 3D contract: a text or a picture in, a coloured mesh out."""

import base64
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from services.schema import Guidance, MediaRequest, Prompt

# The scheduler (Heun) corrects every step but the last by a second call; one step alone would be a blind jump.
MeshSteps = Annotated[int, Field(ge=2, le=200, description="denoising steps; more take longer")]

PREFIX = re.compile(r"\Adata:image/[\w.+-]{1,40};base64,", re.IGNORECASE)

# Time and memory grow with the cube: 256 takes 8 GB, 192 half of that.
GridSize = Annotated[int, Field(ge=8, le=192, description="cells along each edge of the sampled cube")]


def without_prefix(value: object) -> object:
    """Take what a data URL of a picture has behind its prefix."""
    return PREFIX.sub("", value, count=1) if isinstance(value, str) else value


def check_base64(value: str) -> str:
    """Refuse what is not base64."""
    try:
        base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError("must be base64") from error
    return value


# Text and not bytes: BentoML takes a field of bytes for an upload.
Base64Picture = Annotated[
    str,
    BeforeValidator(without_prefix),
    StringConstraints(min_length=4, max_length=34_000_000),
    AfterValidator(check_base64),
]


class MeshRequest(MediaRequest):
    """Body of `POST /v1/3d/generations`: either `prompt` or `image`.

    That is base64 of a PNG, JPEG, WebP, GIF or BMP, or a data URL of it; at the gateway it may be a link.
    """

    prompt: Prompt | None = None
    image: Base64Picture | None = None
    num_inference_steps: MeshSteps | None = None
    guidance_scale: Guidance | None = None
    grid_size: GridSize | None = None
    num_points: Annotated[int, Field(ge=1, le=1_000_000, description="of the point cloud")] | None = None
    max_faces: Annotated[int, Field(ge=4, le=1_000_000, description="fewer, where there are more")] | None = None
    smoothing: Annotated[int, Field(ge=0, le=100, description="rounds; more is smoother")] | None = None
    watertight: Annotated[bool, Field(description="repairs what is not closed")] | None = None

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


def chosen(job: MeshRequest) -> dict[str, Any]:
    """Name what a mesh was made with, besides model, seed and prompt."""
    names = {
        "num_inference_steps", "guidance_scale", "grid_size", "num_points", "max_faces", "smoothing", "watertight",
    }  # fmt: skip
    return job.model_dump(include=names, exclude_none=True)
