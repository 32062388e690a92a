"""The image worker: `bentoml serve services.image.service:ImageService`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import bentoml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.admission import GatewayOnly
from services.conversion import conversions
from services.encoders import Encoder
from services.engine.generation import Followed, Tally, Terms
from services.engine.stepper import Stepper
from services.ensemble import Ensemble, OneReceipt
from services.envelope import EnvelopeMiddleware
from services.errors import InvalidRequest
from services.finals import FinalEvents
from services.image.answers import DocumentEncoder, PictureEncoder, PictureEvents, PictureFiles, converted
from services.image.edit import STRENGTH, Edit
from services.image.schema import EditJob, EditRequest, ImageJob, ImageRequest, OutputFormat, chosen, seed_of
from services.media.picture import fitting
from services.registry import WORKERS, Model
from services.requests import Correlation
from services.responses import negotiated, rendered, wants_final
from services.schema import CONVERSIONS, GenerationRequest
from services.settings import Settings
from services.uploads import JsonBodies, missing, naming_the_field, read_form
from services.worker import MAX_CONCURRENCY, SPARE, UNTRACED, Worker, routes_with

TIMEOUT = 600  # seconds
MAX_BODY_BYTES = 1_000_000
EDITS = "/v1/images/edits"


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.image.engine import ImageStepper

    return ImageStepper(model, settings)


async def edit(request: Request) -> Response:
    """Draw over a picture, or only where a mask says so; answers as drawing does.

    A Starlette route, because BentoML's own multipart parsing changes what it reads.
    """
    return await rendered(draw_over(request, request.app.state.worker))


async def draw_over(request: Request, worker: "ImageService") -> Response:
    """Read the form and answer it.

    Raises:
        ServiceError: the request cannot be served.
        Cancelled: the caller left.
    """
    files, fields = await read_form(
        request, ["image", "mask"], worker.settings.max_upload_bytes, lists={"image[]": "image"}
    )
    if "image" not in files:
        raise missing("image")

    async def prepare(job: EditJob) -> tuple[Edit, Encoder]:
        form = encoder(request, worker, job, body, "image_edit")
        fit = fitting(job.size)
        picture = await worker.read_picture(files["image"], "image", fit)
        mask = await worker.read_mask(files["mask"], "mask", fit) if "mask" in files else None
        strength = job.strength if job.strength is not None else STRENGTH if mask is None else 1.0
        return Edit(job, picture, mask, strength), form

    with naming_the_field():
        body = EditRequest.model_validate(fields)
    return await worker.answer(request, body, EditJob, prepare)


def encoder(request: Request, worker: Worker, job: ImageJob, body: ImageRequest, prefix: str) -> Encoder:
    """Choose the answer's form by the body and by the caller's `Accept`.

    Raises:
        InvalidRequest: several pictures where there is room for one, or more than may ever wait; or links, where
            nobody keeps what they could lead to.
    """
    if job.response_format == "url" and not wants_final(request):
        raise InvalidRequest(
            "response_format: a worker keeps no picture that a link could lead to; ask the gateway, or for b64_json",
            param="response_format",
        )
    file = PictureEncoder(job, worker.provenance(job, body, chosen(job)))
    if job.stream and not wants_final(request):
        return PictureEvents(file, job, prefix)
    form = negotiated(request, file, lambda _: DocumentEncoder(file, job), lambda: PictureFiles(file))
    number, most = job.n or 1, worker.settings.queue_size
    if number > 1 and not isinstance(form, DocumentEncoder | FinalEvents):
        raise InvalidRequest("n: there is room for one picture in this form; accept JSON", param="n")
    if number > most:
        raise InvalidRequest(f"n: this worker lets {most} pictures wait; ask for fewer at once", param="n")
    return form


routes = routes_with(conversions(OutputFormat, converted), Route(EDITS, edit, methods=["POST"]))


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
        """Draw pictures: JSON with base64, events (`stream`), or the file itself under `Accept: image/png`."""

        async def prepare(job: ImageJob) -> tuple[Edit, Encoder]:
            return Edit(job), encoder(ctx.request, self, job, body, "image_generation")

        return await self.answer_api(ctx, body, ImageJob, prepare)

    def terms(self, request: Request, body: GenerationRequest, tell: Callable[[Tally], None]) -> Terms:
        """Add how many sketches a stream shows."""
        terms = super().terms(request, body, tell)
        if isinstance(body, ImageRequest) and body.stream:
            return replace(terms, num_previews=body.partial_images or 0, wants_progress=True)
        return terms

    def submit(self, work: Any, job: GenerationRequest, terms: Terms, cost: int | None) -> Followed:
        """Hand in a generation for each picture: they share forwards with each other as with anybody's."""
        number = job.n or 1 if isinstance(job, ImageRequest) else 1
        if number == 1 or job.seed is None:
            return super().submit(work, job, terms, cost)
        self.engine.check_for_place(number)
        terms = replace(terms, tell=OneReceipt(number, terms.tell).add)
        seeds = [seed_of(job.seed, place) for place in range(number)]
        return Ensemble([self.engine.submit(work, job.model, seed, terms, cost) for seed in seeds])


service = cast(bentoml.Service[ImageService], ImageService)
service.add_asgi_middleware(Correlation)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(GatewayOnly)
service.add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES, forms={EDITS, CONVERSIONS})
