"""What an image model takes: the job, and the picture to start from where there is one."""

from dataclasses import dataclass

from PIL import Image

from services.image.schema import ImageJob

STRENGTH = 0.8  # of a whole picture, the library's


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture to be drawn."""

    job: ImageJob
    picture: Image.Image | None = None  # RGB, of the job's size
    mask: Image.Image | None = None  # L, of the job's size, white where to paint
    strength: float = 1.0  # how far the picture may be left behind
