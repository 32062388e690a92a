"""The composition root: everything is wired here and nowhere else."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from gateway.catalog import Catalog
from gateway.database.database import open_database
from gateway.errors import GatewayError, render_gateway_error, render_http_exception, render_invalid
from gateway.metrics import Metrics
from gateway.middleware import Accounting, BodyLimit, LastResort, UnderWay
from gateway.provider_file import Entry, load_entries
from gateway.providers import Provider
from gateway.pulse import Pulse
from gateway.relay import Relay
from gateway.routes import chat, generate, health, usage
from gateway.settings import Settings
from gateway.state import State
from gateway.transport import AiohttpTransport
from gateway.usage.log import UsageLog
from gateway.usage.schema import Record
from services.registry import Model, load_models
from services.schema import RUN_HEADERS, ErrorEnvelope

FORM_ALLOWANCE = 64_000  # bytes for what surrounds an uploaded file
LAST_SECONDS = 3  # for requests that are cut when the gateway stops
MAX_PROBES = 32  # at once; a question of its own connection never waits for work to end
OWN_HEADERS = [
    "x-request-id",
    "x-api-request-id",
    "x-response-time",
    *RUN_HEADERS,
    "content-disposition",
    "retry-after",
]
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorEnvelope, "description": "Something in the request does not fit; `param` names it."},
    503: {"model": ErrorEnvelope, "description": "The worker is loading or gone; try again after `Retry-After`."},
}


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """Build the gateway. Tests may pass a `transport` that plays the workers; production passes none."""
    models = load_models()
    entries = provider_entries(settings, models)
    metrics = Metrics()
    under_way = UnderWay()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            transport or AiohttpTransport(settings.max_upstream_connections) as work,
            client(transport or AiohttpTransport(MAX_PROBES)) as probes,
            Catalog(
                settings.workers,
                models,
                [Provider(entry, work, settings.connect_timeout) for entry in entries],
                settings.openai_model,
                probes,
                settings.probe_interval,
            ) as catalog,
            open_database(settings.database) as database,
            UsageLog.open(database, dropped=metrics.usage_dropped) as log,
        ):
            app.state.usage = log
            app.state.wired = State(
                catalog=catalog,
                relay=Relay(
                    work,
                    Pulse(probes, settings.probe_interval),
                    connect_timeout=settings.connect_timeout,
                    deadline=settings.deadline,
                    idle_timeout=settings.idle_timeout,
                ),
                metrics=metrics,
            )
            yield
            await under_way.end(LAST_SECONDS)  # the server has cut what took too long; its rows are still to come

    app = FastAPIOffline(
        title="Atelier",
        summary="Generative models of every modality behind one HTTP API.",
        lifespan=lifespan,
        responses=ERRORS,
    )
    app.include_router(chat.router)  # first, as it is asked most: routes are tried one after the other
    app.include_router(generate.router)
    app.include_router(usage.router)
    app.include_router(health.router)
    app.add_exception_handler(GatewayError, render_gateway_error)
    app.add_exception_handler(RequestValidationError, render_invalid)
    app.add_exception_handler(HTTPException, render_http_exception)
    add_middleware(app, settings, metrics, under_way)
    document(app)
    return app


def provider_entries(settings: Settings, models: Sequence[Model]) -> tuple[Entry, ...]:
    """The outside models: those of the file, and the one that settings describe.

    Raises:
        ValueError: something in the file does not fit.
        OSError: it cannot be read.
    """
    entries: tuple[Entry, ...] = ()
    if settings.providers_file:
        entries = load_entries(settings.providers_file, {model.id: model.task for model in models}, os.environ)
    if not settings.openai_base_url or settings.openai_model in {entry.id for entry in entries}:
        return entries
    one = Entry(id=settings.openai_model, base_url=settings.openai_base_url, key=settings.openai_api_key)
    return (*entries, one)


def client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """A client for our own questions: no proxy and no credentials from the environment."""
    return httpx.AsyncClient(transport=transport, trust_env=False)


def add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, under_way: UnderWay) -> None:
    """Wrap the routes; what is added last is outermost."""

    def put(record: Record) -> None:
        app.state.usage.put(record)

    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes + FORM_ALLOWANCE)
    app.add_middleware(LastResort)  # inside CORS, so that a browser may read the error
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=OWN_HEADERS,
        )
    app.add_middleware(Accounting, metrics=metrics, put=put, under_way=under_way)


def document(app: FastAPI) -> None:
    """Put the bodies that we read ourselves into the OpenAPI document, and take FastAPI's own 422 out: it is a 400."""
    built = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = built()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            document["components"]["schemas"].update(chat.schemas())
            for schema in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(schema, None)
        return built()

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way
