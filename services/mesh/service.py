"""The mesh worker: `bentoml serve services.mesh.service:MeshService`."""

import asyncio
import base64
from functools import partial
from typing import Any, cast

import bentoml
from PIL.Image import Image
from starlette.requests import Request

from services.admission import GatewayOnly
from services.encoders import Base64Encoder, Encoder, GlbEncoder, ObjEncoder, PlyEncoder, TurntableEncoder
from services.engine.stepper import Stepper
from services.envelope import EnvelopeMiddleware
from services.finals import MeshFiles
from services.media import ply
from services.media.picture import reduced
from services.mesh import reshaping, schema
from services.mesh.schema import MeshJob, MeshRequest
from services.provenance import Provenance
from services.registry import WORKERS, Model
from services.requests import Correlation
from services.responses import chosen, negotiated
from services.settings import Settings
from services.uploads import JsonBodies
from services.worker import MAX_CONCURRENCY, SPARE, UNTRACED, Worker, routes_with

TIMEOUT = 900  # seconds
MAX_BODY_BYTES = 34_100_000  # a picture of 25 MB in base64
FORMS = ObjEncoder, GlbEncoder, PlyEncoder, TurntableEncoder


def make_stepper(model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its library is imported here, so that BentoML's parent process does without it."""
    from services.mesh.engine import MeshStepper

    return MeshStepper(model, settings)


def encoder(request: Request, job: MeshJob, provenance: Provenance) -> Encoder:
    """Choose the answer's form."""
    reshape = partial(reshaping.reshaped, job=job)
    num_points = job.num_points or ply.NUM_POINTS
    raw = chosen(request, [partial(form, provenance, reshape) for form in FORMS])
    files = partial(MeshFiles, provenance, reshape, num_points)
    return negotiated(request, raw, partial(Base64Encoder, output_format="obj"), files)


routes = routes_with()


@bentoml.service(
    name="mesh",
    workers=1,
    resources={"cpu": "2", "memory": "8Gi"},
    traffic={"timeout": TIMEOUT + SPARE, "max_concurrency": MAX_CONCURRENCY},
    http={"port": WORKERS["mesh"].port},
    tracing={"excluded_urls": UNTRACED},
)
@bentoml.asgi_app(routes)
class MeshService(Worker):
    """Coloured meshes from a text or a picture."""

    longest = TIMEOUT

    def __init__(self) -> None:
        """Wire the engine."""
        super().__init__("mesh", make_stepper)
        routes.state.worker = self

    @bentoml.api(route="/v1/3d/generations")
    async def sculpt(self, body: MeshRequest, /, ctx: bentoml.Context) -> Any:
        """Make a mesh: JSON with base64 of an OBJ, or what `Accept` names.

        That may be `model/obj`, `model/gltf-binary`, `model/ply`, or `image/gif`, in which it turns.
        """
        if body.model is None:
            body = body.model_copy(update={"model": self.model_for("text" if body.image is None else "image")})

        async def prepare(job: MeshJob) -> tuple[tuple[MeshJob, Image | None], Encoder]:
            image = None
            if job.image is not None:
                image = await self.read_picture(base64.b64decode(job.image), "image", reduced)
                job = job.model_copy(update={"image": None})  # the file may be large, and the request may wait long
            if needed := reshaping.named(job):
                await asyncio.to_thread(reshaping.load, needed)  # before a mesh is made for nothing
            return (job, image), encoder(ctx.request, job, self.provenance(job, body, schema.chosen(job)))

        return await self.answer_api(ctx, body, MeshJob, prepare)


service = cast(bentoml.Service[MeshService], MeshService)
service.add_asgi_middleware(Correlation)
service.add_asgi_middleware(EnvelopeMiddleware)
service.add_asgi_middleware(GatewayOnly)
service.add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES)
