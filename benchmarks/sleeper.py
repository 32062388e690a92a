"""A worker whose model sleeps, for `benchmarks.cluster`: what scales with hosts, where the cores do not."""

import asyncio

from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

SECONDS, AT_ONCE = 0.5, 4  # that a generation takes, and how many a process works on


def app() -> Starlette:
    """Answer as the text worker does."""
    places = asyncio.Semaphore(AT_ONCE)

    async def chat(request: Request) -> Response:
        await request.body()
        async with places:
            await asyncio.sleep(SECONDS)
        return JSONResponse({"object": "chat.completion", "choices": []})

    async def ready(request: Request) -> Response:
        return Response()

    routes = [Route(path, ready) for path in ("/readyz", "/livez", "/v1/models")]
    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), *routes])


@serve.deployment(name="sleeper", max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
@serve.ingress(app)
class Sleeper:
    """One process."""


application = Sleeper.bind()
