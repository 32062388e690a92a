"""What an image model takes: the job, and the picture to start from where there is one."""

from dataclasses import dataclass

from PIL import Image, ImageOps

from services.image.schema import ImageJob
from services.schema import parse_size


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture to be drawn."""

    job: ImageJob
    picture: Image.Image | None = None  # RGB, of the job's size
    mask: Image.Image | None = None  # L, of the job's size, white where to paint
    strength: float = 1.0  # how far the picture may be left behind


def fitted(picture: Image.Image, size: str) -> Image.Image:
    """Crop a picture to the aspect ratio of `size`, and scale it."""
    return ImageOps.fit(picture, parse_size(size))
