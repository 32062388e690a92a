"""The image worker: `bentoml serve services.image.service:ImageService`."""

from functools import partial
from typing import Any, cast

import bentoml

from services.encoders import Base64Encoder, Encoder, PngEncoder
from services.engine.stepper import Stepper
from services.envelope import EnvelopeMiddleware
from services.image.schema import Edit, ImageJob, ImageRequest
from services.registry import WORKERS, Model
from services.responses import negotiated
from services.settings import Settings
from services.uploads import BodyLimit
from services.worker import SPARE, Worker

TIMEOUT = 600  # seconds
MAX_BODY_BYTES = 1_000_000


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.image.engine import ImageStepper

    return ImageStepper(model, settings)


@bentoml.service(
    name="image",
    workers=1,
    resources={"cpu": "2", "memory": "6Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": 64},
    http={"port": WORKERS["image"].port},
)
class ImageService(Worker):
    """Pictures from text."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("image", make_stepper)

    @bentoml.api(route="/v1/images/generations")
    async def generate(self, body: ImageRequest, /, ctx: bentoml.Context) -> Any:
        """Draw a picture: JSON with base64, or the PNG itself under `Accept: image/png`."""

        async def prepare(job: ImageJob) -> tuple[Edit, Encoder]:
            return Edit(job), negotiated(ctx.request, PngEncoder(), partial(Base64Encoder, output_format="png"))

        return await self.answer_api(ctx, body, ImageJob, prepare)


service = cast(bentoml.Service[ImageService], ImageService)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
