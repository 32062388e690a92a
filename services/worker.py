"""What the five BentoML services have in common: an engine that loads in the background, and answers that own it."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import bentoml
from opentelemetry import trace
from PIL.Image import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.encoders import Encoder
from services.engine.assembly import Make, build_engine
from services.engine.generation import Followed, Tally, Terms, restarting
from services.engine.metrics import Ending
from services.errors import DeadlineExceeded, InvalidRequest, ServiceError
from services.logs import LogFormat, write_logs
from services.media import picture
from services.provenance import Provenance
from services.receipts import Receipts
from services.registry import Modality, Model, Task, choices_of, first_for, load_models, local_models_of
from services.responses import rendered, respond, terms_of
from services.schema import MAX_SEED, GenerationRequest, Job, MediaRequest, complete, envelope
from services.settings import Settings
from services.templates import worded
from services.tracing import open_provider
from services.uploads import naming_the_field

Fit = Callable[[Image], Image]

MAX_CONCURRENCY = 1024  # connections with a request: far beyond our queue, since BentoML's 429 says nothing more
SPARE = 60  # seconds that BentoML waits longer than the engine: for the upload, and so that our own answer comes first
PROMPTS = {"prompt", "negative_prompt", "input"}  # by whatever name a contract has them
UNTRACED = [".*"]  # by BentoML, which makes a span of each piece that is streamed: 47 µs, collected or not


def show_logs(form: LogFormat) -> None:
    """Send our log lines where BentoML sends its own, and write all of them in one form."""
    ours = logging.getLogger("atelier")
    ours.setLevel(logging.INFO)
    ours.handlers = logging.getLogger("bentoml").handlers
    ours.propagate = False
    for name in ("bentoml", "uvicorn.error", "circus", None):
        write_logs(logging.getLogger(name).handlers, form)


async def list_models(request: Request) -> JSONResponse:
    """Say which models this worker serves, in the order of the registry, and which are in memory or why not."""
    worker: Worker = request.app.state.worker
    return JSONResponse({"object": "list", "data": [described(worker, name) for name in worker.revisions]})


def described(worker: "Worker", model: str) -> dict[str, Any]:
    """Say how a model is."""
    return {
        "id": model,
        "object": "model",
        "adapters": worker.models[model].adapter_names,
        **asdict(worker.engine.look(model)),
    }


async def load_model(request: Request) -> Response:
    """Have a model loaded, and say how it is by now."""
    worker: Worker = request.app.state.worker
    return await rendered(told(worker, worker.engine.load, request.path_params["model"]))


async def unload_model(request: Request) -> Response:
    """Have a model leave memory once those who wait for it have been served, and say how it is by now."""
    worker: Worker = request.app.state.worker
    return await rendered(told(worker, worker.engine.unload, request.path_params["model"]))


async def told(worker: "Worker", tell: Callable[[str], None], model: str) -> JSONResponse:
    """Tell the engine what an operator wants.

    Raises:
        ServiceError: there is no such model, or it is not to be loaded.
    """
    tell(model)
    return JSONResponse(described(worker, model), 202)


def routes_with(*routes: Route) -> Starlette:
    """The routes that BentoML's own parsing would get in the way of: those that every worker has, and `routes`.

    Its `state.worker` is the service.
    """
    models = [
        Route("/v1/models", list_models),
        Route("/v1/models/{model:path}/load", load_model, methods=["POST"]),
        Route("/v1/models/{model:path}/unload", unload_model, methods=["POST"]),
    ]
    return Starlette(routes=[*models, *routes])


class Worker:
    """Base of the services; each adds its routes and says how long one of its requests may take."""

    longest: float  # seconds

    def __init__(self, task: Task, make: Make) -> None:
        """Wire the engine of `task`; nothing is loaded yet."""
        self.settings = Settings()
        show_logs(self.settings.log_format)
        provider = open_provider(f"atelier-{task}")
        if provider is not None:
            trace.set_tracer_provider(provider)
        self.engine = build_engine(task, make, self.settings)
        models = local_models_of(task, load_models(self.settings.models_file, self.settings.profile))
        self.models: Mapping[str, Model] = {model.id: model for model in models}
        self.templates = {model.id: model.template for model in models}
        self.revisions = {model.id: model.revision_in(self.settings.profile) for model in models}
        self.receipts = Receipts(task, self.settings)

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        """Write the parent process's log lines as the worker's; BentoML runs this before it starts one."""
        show_logs(Settings().log_format)

    @bentoml.on_startup
    def start(self) -> None:
        """Load in the background; until that is done `/readyz` says 503, and so do requests."""
        if self.settings.drain_file is not None:
            self.settings.drain_file.unlink(missing_ok=True)  # of a stop before this start
        self.receipts.start()
        self.engine.start()

    @bentoml.on_shutdown
    def stop(self) -> None:
        """Stop after the current iteration."""
        self.engine.close()
        self.receipts.close()

    async def __is_ready__(self) -> bool:
        """Whether requests can run.

        Raises:
            HTTPException: they cannot; BentoML answers with it, and so `/readyz` says why.
        """
        drain_file = self.settings.drain_file
        try:
            self.engine.check_is_ready()
            if drain_file is not None and drain_file.exists():
                raise restarting()
        except ServiceError as error:
            said = envelope(error.status, error.message, error.code)
            raise HTTPException(error.status, said.model_dump_json()) from error
        return True

    async def read_picture(self, data: bytes, param: str, fit: Fit) -> Image:
        """Decode a caller's picture beside the event loop.

        Args:
            data: the file.
            param: the field that it came in.
            fit: makes of it what the model works on; the whole one may be large, and the request may wait long.

        Raises:
            InvalidRequest: it is none, or one that would not fit into memory.
        """
        return await self._read(picture.read, data, param, fit)

    async def read_mask(self, data: bytes, param: str, fit: Fit) -> Image:
        """Decode a caller's mask, likewise: L, white where it is transparent, or white.

        Raises:
            InvalidRequest: it is none, or one that would not fit into memory.
        """
        return await self._read(picture.read_mask, data, param, fit)

    async def _read(self, read: Callable[[bytes, int], Image], data: bytes, param: str, fit: Fit) -> Image:
        try:
            return await asyncio.to_thread(lambda: fit(read(data, self.settings.max_image_pixels)))
        except picture.PictureError as error:
            raise InvalidRequest(str(error), param=param) from error

    async def answer(
        self,
        request: Request,
        body: GenerationRequest,
        job_type: type[Job],
        prepare: Callable[[Job], Awaitable[tuple[Any, Encoder]]],
    ) -> Response:
        """Run `body` on the engine and answer with what comes of it.

        Args:
            request: whose caller is waited for; its body has been read.
            body: what the caller sent.
            job_type: the body with nothing left out.
            prepare: given the job, what the model takes and the encoder for the answer; may raise a `ServiceError`.

        Raises:
            ServiceError: the request cannot be served.
            Cancelled: the caller left.
        """

        async def start() -> tuple[Followed, Encoder]:
            began = time.monotonic()
            tell = self.receipts.teller(request)
            try:
                terms = self.terms(request, body, tell)
                self.engine.check_for_place()  # before a picture is decoded for nothing
                seed = body.seed if body.seed is not None else secrets.randbelow(MAX_SEED + 1)
                defaults = {**self.engine.defaults(body.model), "seed": seed}
                with naming_the_field():  # which does not fit the model, or which it has no default for
                    whole = complete(job_type, body, defaults)
                job = worded(whole, self.templates[defaults["model"]])
                self.check_offers(self.models[defaults["model"]], job)
                work, encoder = await prepare(job)
                cost = await self._estimate(work, body.model, terms)
                left = max(terms.deadline - (time.monotonic() - began), 0.001)
                return self.submit(work, job, replace(terms, deadline=left), cost), encoder
            except BaseException:
                tell(Tally("", Ending.FAILED))
                raise

        return await respond(request, start)

    def check_offers(self, model: Model, job: GenerationRequest) -> None:
        """Refuse a voice, a scheduler or an adapter that the model does not have.

        Raises:
            InvalidRequest: it names those that there are.
        """
        if refused := model.refusal_of(self.settings.profile, choices_of(job)):
            raise InvalidRequest(refused.message, param=refused.field, code=refused.code)

    def model_for(self, modality: Modality) -> str | None:
        """The model that makes something of a text, or of a picture, where a request names none; there may be none."""
        model = first_for(modality, self.models.values())
        return None if model is None else model.id

    def makes_from(self, modality: Modality, model: str | None) -> bool:
        """Whether a model, or else the default, makes something of texts, or of pictures."""
        found = self.models.get(model if model is not None else next(iter(self.models)))
        return found is not None and modality in found.input_modalities

    def terms(self, request: Request, body: GenerationRequest, tell: Callable[[Tally], None]) -> Terms:
        """On what terms the caller waits.

        Raises:
            InvalidRequest: a header is not what it should be; it is named.
        """
        return terms_of(request, self.longest, tell)

    def submit(self, work: Any, job: GenerationRequest, terms: Terms, cost: int | None) -> Followed:
        """Hand `work` to the engine.

        Args:
            work: what the model takes.
            job: what was asked for, with nothing left out.
            terms: on what terms the caller waits; nobody has been told anything if this raises.
            cost: in bytes, if it is known.

        Raises:
            ServiceError: there is no place for it.
        """
        return self.engine.submit(work, job.model, job.seed, terms, cost)

    def provenance(self, job: MediaRequest, body: MediaRequest, parameters: Mapping[str, Any]) -> Provenance:
        """What a file says that was made of `job`.

        Args:
            job: a request with nothing left out, and with the operator's words in it.
            body: as it came, and so with its caller's words alone.
            parameters: of `job`.
        """
        if job.model is None or job.seed is None:
            raise TypeError("a job has a model and a seed")
        texts = body.model_dump(include=PROMPTS, exclude_none=True) if body.prompt_in_metadata else {}
        return Provenance(job.model, self.revisions[job.model], job.seed, {**parameters, **texts})

    async def _estimate(self, work: Any, model: str | None, terms: Terms) -> int | None:
        """Find out what a request will take, as long as its caller waits.

        Raises:
            DeadlineExceeded: that was too long.
        """
        try:
            async with asyncio.timeout(terms.deadline):
                return await self.engine.estimate(work, model, terms)
        except TimeoutError as error:
            raise DeadlineExceeded from error

    async def answer_api(
        self,
        ctx: bentoml.Context,
        body: GenerationRequest,
        job_type: type[Job],
        prepare: Callable[[Job], Awaitable[tuple[Any, Encoder]]],
    ) -> Response:
        """`answer` for a `@bentoml.api` method."""
        return await self.render_api(ctx, self.answer(ctx.request, body, job_type, prepare))

    async def render_api(self, ctx: bentoml.Context, answer: Awaitable[Response]) -> Response:
        """Return what comes of `answer` in a `@bentoml.api` method: BentoML puts the context's status over its own."""
        response = await rendered(answer)
        ctx.response.status_code = response.status_code
        return response
