"""The composition root: everything is wired here and nowhere else."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import Tracer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from gateway.artefacts.store import Artefacts
from gateway.auth import Authentication, Door
from gateway.budgets.budgets import Budgets
from gateway.budgets.prices import read_prices
from gateway.catalog import Catalog
from gateway.database.database import open_database
from gateway.direct import serve_directly
from gateway.document import add_errors, schemas
from gateway.drain import Drain, NoNewWork
from gateway.errors import (
    GatewayError,
    Misconfigured,
    render_gateway_error,
    render_http_exception,
    render_invalid,
    told_of,
)
from gateway.jobs.books import Books
from gateway.jobs.desk import Desk
from gateway.jobs.foreman import Foreman
from gateway.jobs.runner import Runner
from gateway.jobs.store import Store
from gateway.jobs.webhooks import Webhooks
from gateway.keeping import Keeper
from gateway.keys.first import check_keys
from gateway.keys.keyring import Keyring
from gateway.limits import RATE_HEADERS, RateHeaders, open_limits
from gateway.metrics import Metrics
from gateway.middleware import Accounting, BodyLimit, LastResort, UnderWay
from gateway.moderation import Moderator
from gateway.outside import Guard, GuardedTransport
from gateway.pictures import Pictures
from gateway.policy import Policy, read_policies
from gateway.provider_file import Entries, Entry, load_entries
from gateway.providers import Provider
from gateway.pulse import Pulse
from gateway.receipts import Receipts
from gateway.relay import Relay
from gateway.routes import (
    audio,
    chat,
    generate,
    health,
    images,
    internal,
    jobs,
    keys,
    models,
    provenance,
    signed_urls,
    summary,
    usage,
    videos,
    webhooks,
)
from gateway.settings import Settings
from gateway.signing import Signer, load_secret
from gateway.state import State
from gateway.tracing import TracedTransport
from gateway.transport import AiohttpTransport
from gateway.usage.content import ContentPolicy
from gateway.usage.housekeeping import kept_in_order
from gateway.usage.log import UsageLog
from gateway.usage.schema import Record
from services.registry import Model, load_models
from services.schema import RUN_HEADERS, ErrorEnvelope
from services.secret_files import listed
from services.tracing import ServerSpans, open_provider

FORM_ALLOWANCE = 64_000  # bytes for what surrounds an uploaded file
LAST_SECONDS = 3  # for requests that are cut when the gateway stops
MAX_MODERATIONS = 64  # at once
MAX_PROBES = 32  # at once; a question of its own connection never waits for work to end
OWN_HEADERS = [
    "x-request-id",
    "x-api-request-id",
    "x-response-time",
    *RUN_HEADERS,
    "content-disposition",
    "retry-after",
    "x-should-retry",
    *RATE_HEADERS,
]
ROUTERS = (
    chat.router,
    images.router,
    audio.router,
    generate.router,
    models.router,
    jobs.router,
    videos.videos,
    videos.meshes,
    usage.router,
    signed_urls.router,
    provenance.router,
    webhooks.router,
    summary.router,
    internal.router,
    keys.router,
    keys.budgets,
    health.router,
)
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorEnvelope, "description": "Something in the request does not fit; `param` names it."},
    401: {"model": ErrorEnvelope, "description": "There is no key, or none that is valid."},
    403: {"model": ErrorEnvelope, "description": "The key is not for this; `code` says what it lacks."},
    429: {
        "model": ErrorEnvelope,
        "description": "The key or the queue has had enough; come back after `Retry-After`.",
    },
    503: {"model": ErrorEnvelope, "description": "The worker is loading or gone; try again after `Retry-After`."},
}


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """Build the gateway. Tests may pass a `transport` that plays the workers; production passes none."""
    registered = registered_models(settings)
    outside = provider_entries(settings, registered)
    metrics = Metrics(model.id for model in registered)
    internal_tokens = listed(settings.internal_token)
    under_way = UnderWay()
    prices = read_prices(settings.prices_file)
    traces = open_provider("atelier-gateway")
    tracer = traces.get_tracer("atelier.gateway") if traces is not None else None
    policies = read_policies(settings.policy_file)
    guard = Guard(settings.allowed_networks)
    drain = Drain(under_way, settings.drain_seconds, settings.drain_patience)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        executor = token_hex(8)  # a new one each time: who comes back is somebody else
        async with (
            GuardedTransport(guard) as named_receivers,
            GuardedTransport(guard) as named_pictures,
            sender(settings.max_upstream_connections, transport, tracer) as work,
            client(sender(MAX_PROBES, transport)) as probes,
            client(sender(MAX_PROBES, transport)) as pulses,
            client(sender(MAX_MODERATIONS, transport, tracer)) as moderation,
            Catalog(
                settings.workers,
                registered,
                [Provider(entry, work, settings.connect_timeout) for entry in outside.models],
                outside.fallbacks,
                settings.openai_model,
                probes,
                settings.probe_interval,
            ) as catalog,
            open_database(settings.database) as database,
            Store(database, settings.job_retention).present(executor) as store,
            UsageLog.open(database, dropped=metrics.usage_dropped) as log,
            kept_in_order(database, settings.usage_retention_days),
            Keyring.open(database, settings.key_cache_seconds) as keyring,
            open_limits(settings.redis_url.get_secret_value(), settings.redis_down) as limits,
            Budgets.open(database, settings.deadline) as budgets,
            Receipts.open(log, budgets, prices) as receipts,
        ):
            await check_keys(database, settings.admin_key_file, is_loopback=settings.is_loopback)
            app.state.usage = log
            signing_keys = [key.encode() for key in listed(settings.signing_key)]
            signing_keys = signing_keys or [load_secret(settings.signing_key_file)]
            signer = Signer(*signing_keys)
            told = Webhooks(named_receivers, *signing_keys)
            artefacts = await asyncio.to_thread(Artefacts.open, settings.artefacts_url, settings.artefacts_dir)
            relay = Relay(
                work,
                Pulse(pulses, settings.probe_interval),
                metrics,
                receipts.write,
                connect_timeout=settings.connect_timeout,
                deadline=settings.deadline,
                idle_timeout=settings.idle_timeout,
                token=next(iter(internal_tokens), ""),
            )
            relay.instead = jobs.instead
            policy = Policy(policies, Moderator(moderation, settings.moderation_key))
            books = Books(database)
            runner = Runner(store, relay, catalog, artefacts, policy, settings.job_patience)
            foreman = Foreman(executor, store, books, runner, artefacts, settings.job_places, told)
            app.state.wired = State(
                catalog=catalog,
                relay=relay,
                metrics=metrics,
                drain=drain,
                policy=policy,
                signer=signer,
                internal_tokens=internal_tokens,
                keyring=keyring,
                door=Door(
                    keyring,
                    signer,
                    is_loopback=settings.is_loopback,
                    allowed_hosts=settings.allowed_hosts,
                    open_metrics=settings.open_metrics,
                ),
                limits=limits,
                budgets=budgets,
                receipts=receipts,
                prices=prices,
                webhooks=told,
                guard=guard,
                models=registered,
                profile=settings.profile,
                jobs=Desk(store, foreman, artefacts, budgets, settings.job_patience),
                books=books,
                pictures=Pictures(
                    named_pictures, follows_links=settings.image_urls, max_bytes=settings.max_upload_bytes
                ),
                keeper=Keeper(store, relay, artefacts, signer, settings.job_retention, settings.public_url, executor),
            )
            async with foreman.working():
                yield
            await under_way.end(LAST_SECONDS)  # the server has cut what took too long; its rows are still to come
        if traces is not None:
            await asyncio.to_thread(traces.shutdown)  # which sends the last ones

    app = FastAPIOffline(
        title="Atelier",
        summary="Generative models of every modality behind one HTTP API.",
        lifespan=lifespan,
        responses=ERRORS,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # we have our own, in workers too
    )
    app.state.drain = drain
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(GatewayError, render_gateway_error)
    app.add_exception_handler(RequestValidationError, render_invalid)
    app.add_exception_handler(HTTPException, render_http_exception)
    add_middleware(app, settings, metrics, under_way, drain)
    if tracer is not None:
        app.add_middleware(ServerSpans, tracer=tracer, trusts_callers=settings.trust_traceparent)
    serve_directly(app, chat.router)
    document(app)
    return app


def registered_models(settings: Settings) -> tuple[Model, ...]:
    """What our workers serve; they read the same file.

    Raises:
        Misconfigured: the operator's cannot be read, or something in it does not fit.
    """
    try:
        return load_models(settings.models_file, settings.profile)
    except ValueError as error:
        raise Misconfigured(f"ATELIER_MODELS_FILE: {error}") from error


def provider_entries(settings: Settings, models: Sequence[Model]) -> Entries:
    """The outside models: those of the file, and the one that settings describe.

    Raises:
        Misconfigured: the file cannot be read, or something in it does not fit.
    """
    found = Entries()
    if settings.providers_file:
        with told_of("ATELIER_PROVIDERS_FILE", settings.providers_file):
            found = load_entries(settings.providers_file, {model.id: model.task for model in models}, os.environ)
    if not settings.openai_base_url or settings.openai_model in {entry.id for entry in found.models}:
        return found
    one = Entry(id=settings.openai_model, base_url=settings.openai_base_url, key=settings.openai_api_key)
    return found.model_copy(update={"models": (*found.models, one)})


def sender(
    max_connections: int, transport: httpx.AsyncBaseTransport | None, tracer: Tracer | None = None
) -> httpx.AsyncBaseTransport:
    """What sends requests for us: no proxy and no credentials from the environment, bytes as they are."""
    chosen = transport or AiohttpTransport(max_connections)
    return chosen if tracer is None else TracedTransport(chosen, tracer)


def client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """A client for our own questions: no proxy and no credentials from the environment."""
    return httpx.AsyncClient(transport=transport, trust_env=False)


def add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, under_way: UnderWay, drain: Drain) -> None:
    """Wrap the routes; what is added last is outermost."""

    def put(record: Record) -> None:
        app.state.usage.put(record)

    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes + FORM_ALLOWANCE)
    app.add_middleware(NoNewWork, drain=drain)
    app.add_middleware(RateHeaders, limits=lambda: app.state.wired.limits)
    app.add_middleware(Authentication, door=lambda: app.state.wired.door)
    app.add_middleware(LastResort)  # inside CORS, so that a browser may read the error
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=OWN_HEADERS,
        )
    policy = ContentPolicy(settings.log_content, settings.log_content_chars, settings.redact_patterns)
    app.add_middleware(Accounting, metrics=metrics, put=put, under_way=under_way, policy=policy)


def document(app: FastAPI) -> None:
    """Put the bodies that we read ourselves into the OpenAPI document, and the errors that routes have."""
    built = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = built()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    add_errors(path, operation)
            contracts = (*chat.CONTRACTS, *images.CONTRACTS, *audio.CONTRACTS, *videos.CONTRACTS)
            document["components"]["schemas"].update(schemas(*contracts))
            for schema in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(schema, None)
        return built()

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way
