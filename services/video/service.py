"""The video worker: `bentoml serve services.video.service:VideoService`."""

from typing import Any, cast

import bentoml
from PIL.Image import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.admission import GatewayOnly
from services.conversion import conversions
from services.encoders import Encoder, GifEncoder, Mp4Encoder, WebpEncoder
from services.engine.events import Done
from services.engine.stepper import Stepper, WholeCall
from services.envelope import EnvelopeMiddleware
from services.errors import InvalidRequest
from services.finals import FilmFiles
from services.media import film
from services.media.picture import fitting
from services.provenance import Provenance
from services.registry import WORKERS, Model
from services.requests import Correlation
from services.responses import negotiated, rendered, wants
from services.settings import Settings
from services.uploads import naming_the_field, read_form
from services.video import schema
from services.video.schema import Format, TextVideoJob, VideoJob, VideoRequest
from services.worker import MAX_CONCURRENCY, SPARE, UNTRACED, Worker, routes_with

TIMEOUT = 1800  # seconds
FILE_FIELD = "input_reference"
ENCODERS: dict[Format, type[Mp4Encoder | GifEncoder | WebpEncoder]] = {
    "mp4": Mp4Encoder,
    "gif": GifEncoder,
    "webp": WebpEncoder,
}


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.video.engine import FilmStepper, TextFilmGenerator

    if "text" in model.input_modalities:
        return WholeCall(TextFilmGenerator(model, settings))
    return FilmStepper(model, settings)


async def generate(request: Request) -> Response:
    """Make a film that starts with the uploaded picture, or shows what the prompt says: MP4.

    A Starlette route, because BentoML's own multipart parsing changes what it reads (`"123"` becomes a number, a URL is
    downloaded).
    """
    return await rendered(make_film(request, request.app.state.worker))


async def make_film(request: Request, worker: "VideoService") -> Response:
    """Read the form and answer it.

    Raises:
        ServiceError: the request cannot be served.
        Cancelled: the caller left.
    """
    files, fields = await read_form(request, [FILE_FIELD], worker.settings.max_upload_bytes)
    data = files.get(FILE_FIELD)
    with naming_the_field():
        body = VideoRequest.model_validate(fields)
    if body.model is None:
        is_text = data is None and body.prompt is not None
        body = body.model_copy(update={"model": worker.model_for("text" if is_text else "image")})
    answer = film_prompt if worker.makes_from("text", body.model) else film_picture
    return await answer(request, worker, body, data)


def encoder(request: Request, worker: "VideoService", job: VideoJob | TextVideoJob, body: VideoRequest) -> Encoder:
    """Choose the answer's form by the body, and else by the caller's `Accept`."""
    provenance = worker.provenance(job, body, schema.chosen(job))
    wanted: Format = next((form for form, made in ENCODERS.items() if wants(request, made.media_type)), "mp4")
    form = wanted if job.output_format is None else job.output_format
    raw = ENCODERS[form](job.fps, provenance)
    return negotiated(request, raw, files=lambda: FilmFiles(job.fps, job.num_frames, provenance, form))


async def film_picture(request: Request, worker: "VideoService", body: VideoRequest, data: bytes | None) -> Response:
    """Answer with a film that starts with the picture."""

    async def prepare(job: VideoJob) -> tuple[tuple[VideoJob, Image], Encoder]:
        if data is None:
            other = worker.model_for("text")
            instead = f", or with a 'prompt' for model '{other}'" if other is not None else ""
            raise InvalidRequest(f"send a multipart form with a file in '{FILE_FIELD}'{instead}", param=FILE_FIELD)
        picture = await worker.read_picture(data, FILE_FIELD, fitting(job.size))
        return (job, picture), encoder(request, worker, job, body)

    return await worker.answer(request, body, VideoJob, prepare)


async def film_prompt(request: Request, worker: "VideoService", body: VideoRequest, data: bytes | None) -> Response:
    """Answer with a film of what the prompt says."""

    async def prepare(job: TextVideoJob) -> tuple[TextVideoJob, Encoder]:
        if data is not None:
            raise InvalidRequest(f"model '{job.model}' films a prompt and takes no picture", param=FILE_FIELD)
        return job, encoder(request, worker, job, body)

    return await worker.answer(request, body, TextVideoJob, prepare)


def converted(data: bytes, form: Format, provenance: Provenance, settings: Settings) -> bytes:
    """Write a film that is a file already as one of another format.

    Raises:
        ValueError: it cannot be read.
    """
    read = film.read(data)
    files = FilmFiles(read.frame_rate, read.num_frames, provenance, form)
    try:
        for frame in read.frames:
            files.add(frame)
        return b"".join(next(files.close(Done())).pieces)
    finally:
        files.abort()


routes = routes_with(Route("/v1/videos", generate, methods=["POST"]), conversions(Format, converted))


@bentoml.service(
    name="video",
    workers=1,
    resources={"cpu": "2", "memory": "12Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": MAX_CONCURRENCY},
    http={"port": WORKERS["video"].port},
    tracing={"excluded_urls": UNTRACED},
)
@bentoml.asgi_app(routes)
class VideoService(Worker):
    """Films from pictures and from prompts."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("video", make_stepper)
        routes.state.worker = self


service = cast(bentoml.Service[VideoService], VideoService)
service.add_asgi_middleware(Correlation)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(GatewayOnly)
