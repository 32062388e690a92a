"""The text worker: `bentoml serve services.text.service:TextService`."""

from typing import Any, cast

import bentoml
from starlette.requests import Request
from starlette.responses import Response

from services.admission import GatewayOnly
from services.encoders import Encoder
from services.engine.stepper import Stepper
from services.envelope import EnvelopeMiddleware
from services.errors import InvalidRequest
from services.finals import FinalEvents, OneFile
from services.registry import WORKERS, Model
from services.requests import Correlation
from services.responses import negotiated, wants_final
from services.settings import Settings
from services.text.answers import ChatShape, ChunkEncoder, CompletionShape, DocumentEncoder, Shape, TextEncoder
from services.text.items import Reply, ReplyEncoder, ReplyStream
from services.text.schema import (
    ChatJob,
    ChatRequest,
    CompletionJob,
    CompletionRequest,
    ResponseJob,
    ResponseRequest,
    TextJob,
    TextRequest,
)
from services.uploads import JsonBodies, naming_the_field
from services.worker import MAX_CONCURRENCY, SPARE, UNTRACED, Worker

TIMEOUT = 300  # seconds
MAX_BODY_BYTES = 10_000_000


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.text.engine import TextStepper

    return TextStepper(model, settings)


@bentoml.service(
    name="text",
    workers=1,
    resources={"cpu": "2", "memory": "6Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": MAX_CONCURRENCY},
    http={"port": WORKERS["text"].port},
    tracing={"excluded_urls": UNTRACED},
)
class TextService(Worker):
    """Chat."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("text", make_stepper)

    @bentoml.api(route="/v1/chat/completions")
    async def chat(self, body: ChatRequest, /, ctx: bentoml.Context) -> Any:
        """Continue a chat: JSON, chunks as they are written (`stream`), or bare text under `Accept: text/plain`."""

        async def prepare(job: ChatJob) -> tuple[ChatJob, Encoder]:
            return job, encoder(ctx.request, body, job, ChatShape(job.model))

        return await self.answer_api(ctx, body, ChatJob, prepare)

    @bentoml.api(route="/v1/completions")
    async def complete(self, body: CompletionRequest, /, ctx: bentoml.Context) -> Any:
        """Continue a text, in the same forms."""

        async def prepare(job: CompletionJob) -> tuple[CompletionJob, Encoder]:
            shape = CompletionShape(job.model, body.prompt if body.echo else "")
            return job, encoder(ctx.request, body, job, shape)

        return await self.answer_api(ctx, body, CompletionJob, prepare)

    @bentoml.api(route="/v1/responses")
    async def respond(self, body: ResponseRequest, /, ctx: bentoml.Context) -> Any:
        """Continue a chat as OpenAI's responses do: JSON, or events as it is written (`stream`)."""

        async def prepare(job: ResponseJob) -> tuple[ResponseJob, Encoder]:
            reply = Reply(body, job)
            if wants_final(ctx.request):
                return job, FinalEvents(OneFile("answer", ReplyEncoder(reply)))
            return job, ReplyStream(reply) if body.stream else ReplyEncoder(reply)

        async def answer() -> Response:
            with naming_the_field():
                chat = body.chat()
            return await self.answer(ctx.request, chat, ResponseJob, prepare)

        return await self.render_api(ctx, answer())


def encoder(request: Request, body: TextRequest, job: TextJob, shape: Shape) -> Encoder:
    """Choose the answer's form by the body and by the caller's `Accept`.

    Raises:
        InvalidRequest: several answers as one bare text.
    """
    if wants_final(request):
        return FinalEvents(OneFile("answer", DocumentEncoder(shape)))
    if body.stream:
        options = body.stream_options
        return ChunkEncoder(shape, includes_usage=bool(options and options.include_usage))
    chosen = negotiated(request, TextEncoder(), lambda _: DocumentEncoder(shape))
    if isinstance(chosen, DocumentEncoder):
        return chosen
    unfit = {"n": job.n > 1, "logprobs": job.top_logprobs is not None, "tools": bool(job.callable)}
    for field, is_unfit in {**unfit, "echo": isinstance(body, CompletionRequest) and body.echo}.items():
        if is_unfit:
            raise InvalidRequest(f"bare text has no room for this; leave {field} out, or accept JSON", param=field)
    return chosen


service = cast(bentoml.Service[TextService], TextService)
service.add_asgi_middleware(Correlation)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(GatewayOnly)
service.add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES)
