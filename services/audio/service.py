"""The audio worker: `bentoml serve services.audio.service:AudioService`."""

from typing import Any, cast, get_args

import bentoml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.admission import GatewayOnly
from services.audio.answers import SpeechEncoder, SpeechEvents, converted
from services.audio.schema import Format, SpeechRequest, chosen
from services.conversion import conversions
from services.encoders import Encoder
from services.engine.stepper import Stepper
from services.envelope import EnvelopeMiddleware
from services.errors import ModelLoading
from services.finals import SoundFiles
from services.registry import WORKERS, Model
from services.requests import Correlation
from services.responses import negotiated, rendered, wants, wants_final
from services.schema import CONVERSIONS, MEDIA_TYPES
from services.settings import Settings
from services.uploads import JsonBodies
from services.worker import MAX_CONCURRENCY, SPARE, UNTRACED, Worker, routes_with

TIMEOUT = 600  # seconds
MAX_BODY_BYTES = 1_000_000


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.audio.engine import AudioStepper

    return AudioStepper(model, settings)


async def list_voices(request: Request) -> Response:
    """Name the voices of a model: the one in the query, or else the default."""
    return await rendered(voices_of(request.query_params.get("model"), request.app.state.worker))


async def voices_of(model: str | None, worker: Worker) -> Response:
    """Answer in the shape of OpenAI's lists; `voices` has the bare names, as other servers do.

    What the registry does not say, the checkpoint does: it is loaded for that.

    Raises:
        ServiceError: there is no such model, or it is only now on its way into memory.
    """
    named = model or next(iter(worker.models))
    worker.engine.look(named)  # which knows whether it is there
    names = worker.models[named].voices_in(worker.settings.profile)
    if names is None:
        try:
            names = worker.engine.stepper(named).voices
        except ModelLoading:
            worker.engine.load(named)  # one that has failed is not tried again
            raise
    listed = [{"id": name, "object": "audio.voice", "name": name, "model": named} for name in names]
    return JSONResponse({"object": "list", "data": listed, "voices": list(names)})


def format_of(job: SpeechRequest, request: Request) -> Format:
    """Choose the file's format: as the body says, else as `Accept` does, else as OpenAI does."""
    if job.response_format is not None:
        return job.response_format
    return next((form for form in get_args(Format) if wants(request, MEDIA_TYPES[form])), "mp3")


routes = routes_with(Route("/v1/audio/voices", list_voices), conversions(Format, converted))


@bentoml.service(
    name="audio",
    workers=1,
    resources={"cpu": "2", "memory": "6Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": MAX_CONCURRENCY},
    http={"port": WORKERS["audio"].port},
    tracing={"excluded_urls": UNTRACED},
)
@bentoml.asgi_app(routes)
class AudioService(Worker):
    """Speech from text."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("audio", make_stepper)
        routes.state.worker = self

    @bentoml.api(route="/v1/audio/speech")
    async def speak(self, body: SpeechRequest, /, ctx: bentoml.Context) -> Any:
        """Say a text: a file that is heard as it is said, or events with its pieces (`stream_format` sse)."""

        async def prepare(job: SpeechRequest) -> tuple[SpeechRequest, Encoder]:
            speed = 1.0 if job.speed is None else job.speed
            file = SpeechEncoder(format_of(job, ctx.request), speed, self.provenance(job, body, chosen(job)))
            if job.stream_format == "sse" and not wants_final(ctx.request):
                return job, SpeechEvents(file)
            return job, negotiated(ctx.request, file, files=lambda: SoundFiles(file))

        return await self.answer_api(ctx, body, SpeechRequest, prepare)


service = cast(bentoml.Service[AudioService], AudioService)
service.add_asgi_middleware(Correlation)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(GatewayOnly)
service.add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES, forms={CONVERSIONS})
