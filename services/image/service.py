"""The image worker: `bentoml serve services.image.service:ImageService`."""

from typing import Any, cast

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.admission import GatewayOnly
from services.encoders import Base64Encoder, Encoder, PngEncoder
from services.engine.stepper import Stepper
from services.envelope import EnvelopeMiddleware
from services.finals import OneFile
from services.image.edit import STRENGTH, Edit
from services.image.schema import EditJob, EditRequest, ImageJob, ImageRequest
from services.media.picture import fitting
from services.registry import WORKERS, Model
from services.requests import Correlation
from services.responses import negotiated, rendered
from services.settings import Settings
from services.uploads import JsonBodies, missing, naming_the_field, read_form
from services.worker import MAX_CONCURRENCY, SPARE, UNTRACED, Worker

TIMEOUT = 600  # seconds
MAX_BODY_BYTES = 1_000_000
EDITS = "/v1/images/edits"


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.image.engine import ImageStepper

    return ImageStepper(model, settings)


async def edit(request: Request) -> Response:
    """Draw over a picture, or only where a mask says so: JSON with base64, or the PNG itself under `Accept: image/png`.

    A Starlette route, because BentoML's own multipart parsing changes what it reads.
    """
    return await rendered(draw_over(request, request.app.state.worker))


async def draw_over(request: Request, worker: "ImageService") -> Response:
    """Read the form and answer it.

    Raises:
        ServiceError: the request cannot be served.
        Cancelled: the caller left.
    """
    files, fields = await read_form(request, ["image", "mask"], worker.settings.max_upload_bytes)
    if "image" not in files:
        raise missing("image")

    async def prepare(job: EditJob) -> tuple[Edit, Encoder]:
        fit = fitting(job.size)
        picture = await worker.read_picture(files["image"], "image", fit)
        mask = await worker.read_mask(files["mask"], "mask", fit) if "mask" in files else None
        strength = job.strength if job.strength is not None else STRENGTH if mask is None else 1.0
        return Edit(job, picture, mask, strength), negotiated(request, PngEncoder(), in_json, picture_files)

    with naming_the_field():
        return await worker.answer(request, EditRequest.model_validate(fields), EditJob, prepare)


def in_json(png: Encoder) -> Encoder:
    """Put a PNG into a document."""
    return Base64Encoder(png, "png")


def picture_files() -> OneFile:
    """Make a PNG of a picture."""
    return OneFile("image", PngEncoder())


routes = Starlette(routes=[Route(EDITS, edit, methods=["POST"])])


@bentoml.service(
    name="image",
    workers=1,
    resources={"cpu": "2", "memory": "6Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": MAX_CONCURRENCY},
    http={"port": WORKERS["image"].port},
    tracing={"excluded_urls": UNTRACED},
)
@bentoml.asgi_app(routes)
class ImageService(Worker):
    """Pictures from texts and from pictures."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("image", make_stepper)
        routes.state.worker = self

    @bentoml.api(route="/v1/images/generations")
    async def generate(self, body: ImageRequest, /, ctx: bentoml.Context) -> Any:
        """Draw a picture: JSON with base64, or the PNG itself under `Accept: image/png`."""

        async def prepare(job: ImageJob) -> tuple[Edit, Encoder]:
            return Edit(job), negotiated(ctx.request, PngEncoder(), in_json, picture_files)

        return await self.answer_api(ctx, body, ImageJob, prepare)


service = cast(bentoml.Service[ImageService], ImageService)
service.add_asgi_middleware(Correlation)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(GatewayOnly)
service.add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES, forms={EDITS})
