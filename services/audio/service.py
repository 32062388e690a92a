"""The audio worker: `bentoml serve services.audio.service:AudioService`."""

from typing import Any, cast

import bentoml

from services.admission import GatewayOnly
from services.audio.schema import SpeechRequest
from services.encoders import Encoder, WavEncoder
from services.engine.stepper import Stepper
from services.envelope import EnvelopeMiddleware
from services.finals import SoundFiles
from services.registry import WORKERS, Model
from services.requests import Correlation
from services.responses import negotiated
from services.settings import Settings
from services.uploads import JsonBodies
from services.worker import MAX_CONCURRENCY, SPARE, UNTRACED, Worker

TIMEOUT = 600  # seconds
MAX_BODY_BYTES = 1_000_000


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.audio.engine import AudioStepper

    return AudioStepper(model, settings)


@bentoml.service(
    name="audio",
    workers=1,
    resources={"cpu": "2", "memory": "6Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": MAX_CONCURRENCY},
    http={"port": WORKERS["audio"].port},
    tracing={"excluded_urls": UNTRACED},
)
class AudioService(Worker):
    """Speech from text."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("audio", make_stepper)

    @bentoml.api(route="/v1/audio/speech")
    async def speak(self, body: SpeechRequest, /, ctx: bentoml.Context) -> Any:
        """Say a text: WAV, each sentence as soon as it is said."""

        async def prepare(job: SpeechRequest) -> tuple[SpeechRequest, Encoder]:
            return job, negotiated(ctx.request, WavEncoder(), files=SoundFiles)

        return await self.answer_api(ctx, body, SpeechRequest, prepare)


service = cast(bentoml.Service[AudioService], AudioService)
service.add_asgi_middleware(Correlation)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(GatewayOnly)
service.add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES)
