"""For whoever watches over the gateway."""

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from gateway.catalog import State as WorkerState
from gateway.state import StateOf
from services.registry import Task

router = APIRouter(tags=["health"])


class Liveness(BaseModel):
    """The gateway's own process answers."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """Whether every worker can take requests."""

    status: Literal["ready", "not_ready", "draining"]
    workers: dict[Task, WorkerState]


@router.get("/livez")
async def livez() -> Liveness:
    """Whether the gateway answers; asks nobody."""
    return Liveness()


@router.get(
    "/readyz", responses={503: {"model": Readiness, "description": "A worker is loading or gone, or this goes down."}}
)
async def readyz(state: StateOf, response: Response) -> Readiness:
    """Whether every worker is ready; asks them all, unless the gateway goes down."""
    if state.drain.has_begun:
        response.status_code = 503
        return Readiness(status="draining", workers={})
    workers = await state.catalog.states()
    is_ready = all(worker == "ready" for worker in workers.values())
    response.status_code = 200 if is_ready else 503
    return Readiness(status="ready" if is_ready else "not_ready", workers=workers)


@router.get("/metrics", include_in_schema=False)
async def metrics(state: StateOf) -> Response:
    """Prometheus series."""
    return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
