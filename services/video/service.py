"""The video worker: `bentoml serve services.video.service:VideoService`."""

import logging
from typing import cast

import bentoml
from PIL.Image import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.encoders import Encoder, Mp4Encoder
from services.engine.engine import Generator
from services.envelope import EnvelopeMiddleware
from services.errors import GenerationFailed, InvalidRequest, ServiceError, render
from services.registry import WORKERS, Model
from services.schema import explain
from services.settings import Settings
from services.uploads import read_form
from services.video.schema import VideoJob, VideoRequest
from services.worker import Worker

TIMEOUT = 1800  # seconds
FILE_FIELD = "input_reference"

logger = logging.getLogger("atelier.video")


def make_generator(model: Model, settings: Settings) -> Generator:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.video.engine import VideoGenerator

    return VideoGenerator(model, settings)


async def film(request: Request) -> Response:
    """Make a film that starts with the uploaded picture: MP4, frames as they are decoded.

    A Starlette route, because BentoML's own multipart parsing changes what it reads (`"123"` becomes a number, a URL is
    downloaded). What escapes here would hang until the time-out, so nothing does.
    """
    worker: VideoService = request.app.state.worker
    try:
        data, fields = await read_form(request, FILE_FIELD, worker.settings.max_upload_bytes)
        body = parse_fields(fields)
        picture = await worker.read_picture(data, FILE_FIELD)

        async def prepare(job: VideoJob) -> tuple[tuple[VideoJob, Image], Encoder]:
            return (job, picture), Mp4Encoder(job.fps)

        return await worker.answer(request, body, VideoJob, prepare)
    except ServiceError as error:
        return render(error)
    except Exception:
        logger.exception("a video request failed")
        return render(GenerationFailed("the worker failed on this request; its log says why"))


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


routes = Starlette(routes=[Route("/v1/videos", film, methods=["POST"])])


@bentoml.service(
    name="video",
    workers=1,
    resources={"cpu": "2", "memory": "12Gi"},
    traffic={"timeout": TIMEOUT, "max_concurrency": 48},
    http={"port": WORKERS["video"].port},
)
@bentoml.asgi_app(routes)
class VideoService(Worker):
    """Films from pictures."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("video", make_generator)
        routes.state.worker = self


cast(bentoml.Service[VideoService], VideoService).add_asgi_middleware(EnvelopeMiddleware)
