"""The video worker: `bentoml serve services.video.service:VideoService`."""

from typing import Any, cast

import bentoml
from PIL.Image import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.encoders import Encoder, Mp4Encoder
from services.engine.stepper import Stepper, WholeCall
from services.envelope import EnvelopeMiddleware
from services.errors import InvalidRequest
from services.registry import WORKERS, Model
from services.responses import negotiated, rendered
from services.schema import explain
from services.settings import Settings
from services.uploads import read_form
from services.video.schema import VideoJob, VideoRequest
from services.worker import SPARE, Worker

TIMEOUT = 1800  # seconds
FILE_FIELD = "input_reference"


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.video.engine import VideoGenerator

    return WholeCall(VideoGenerator(model, settings))


async def generate(request: Request) -> Response:
    """Make a film that starts with the uploaded picture: MP4, frames as they are decoded.

    A Starlette route, because BentoML's own multipart parsing changes what it reads (`"123"` becomes a number, a URL is
    downloaded).
    """
    return await rendered(film(request, request.app.state.worker))


async def film(request: Request, worker: "VideoService") -> Response:
    """Read the form and answer it.

    Raises:
        ServiceError: the request cannot be served.
        Cancelled: the caller left.
    """
    data, fields = await read_form(request, FILE_FIELD, worker.settings.max_upload_bytes)
    body = parse_fields(fields)

    async def prepare(job: VideoJob) -> tuple[tuple[VideoJob, Image], Encoder]:
        return (job, await worker.read_picture(data, FILE_FIELD)), negotiated(request, Mp4Encoder(job.fps))

    return await worker.answer(request, body, VideoJob, prepare)


def parse_fields(fields: object) -> VideoRequest:
    """Validate the form's fields, which come as text.

    Raises:
        InvalidRequest: one does not fit; it is named.
    """
    try:
        return VideoRequest.model_validate(fields)
    except ValidationError as error:
        message, field = explain(error.errors()[0])
        raise InvalidRequest(message, param=field) from error


routes = Starlette(routes=[Route("/v1/videos", generate, methods=["POST"])])


@bentoml.service(
    name="video",
    workers=1,
    resources={"cpu": "2", "memory": "12Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": 48},
    http={"port": WORKERS["video"].port},
)
@bentoml.asgi_app(routes)
class VideoService(Worker):
    """Films from pictures."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("video", make_stepper)
        routes.state.worker = self


cast(bentoml.Service[VideoService], VideoService).add_asgi_middleware(EnvelopeMiddleware)
