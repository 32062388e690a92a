"""The text worker: `bentoml serve services.text.service:TextService`."""

from typing import Any, cast

import bentoml

from services.encoders import ChatEncoder, Encoder, TextEncoder
from services.engine.stepper import Stepper, WholeCall
from services.envelope import EnvelopeMiddleware
from services.registry import WORKERS, Model
from services.responses import negotiated
from services.settings import Settings
from services.text.schema import ChatJob, ChatRequest
from services.uploads import JsonBodies
from services.worker import MAX_CONCURRENCY, SPARE, Worker

TIMEOUT = 300  # seconds
MAX_BODY_BYTES = 10_000_000


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.text.engine import TextGenerator

    return WholeCall(TextGenerator(model, settings))


@bentoml.service(
    name="text",
    workers=1,
    resources={"cpu": "2", "memory": "6Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": MAX_CONCURRENCY},
    http={"port": WORKERS["text"].port},
)
class TextService(Worker):
    """Chat."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("text", make_stepper)

    @bentoml.api(route="/v1/chat/completions")
    async def chat(self, body: ChatRequest, /, ctx: bentoml.Context) -> Any:
        """Answer a chat: JSON when it is whole, or the bare text as it is made under `Accept: text/plain`."""

        async def prepare(job: ChatJob) -> tuple[ChatJob, Encoder]:
            return job, negotiated(ctx.request, TextEncoder(), lambda _: ChatEncoder(job.model))

        return await self.answer_api(ctx, body, ChatJob, prepare)


service = cast(bentoml.Service[TextService], TextService)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES)
