"""For whoever watches over the gateway."""

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from gateway.balance import State as WorkerState
from gateway.state import StateOf
from services.registry import Task

router = APIRouter(tags=["health"])


class Liveness(BaseModel):
    """The gateway's own process answers."""

    status: Literal["alive"] = "alive"


class ReplicaCount(BaseModel):
    """Of the replicas of a worker."""

    ready: int
    all: int


class Readiness(BaseModel):
    """Whether for every modality a worker can take requests; the best state of its replicas, and how many are ready."""

    status: Literal["ready", "not_ready", "draining"]
    workers: dict[Task, WorkerState]
    replicas: dict[Task, ReplicaCount]


@router.get("/livez")
async def livez() -> Liveness:
    """Whether the gateway answers; asks nobody."""
    return Liveness()


@router.get(
    "/readyz",
    responses={503: {"model": Readiness, "description": "A modality has no ready worker, or this goes down."}},
)
async def readyz(state: StateOf, response: Response) -> Readiness:
    """Whether every modality has a ready worker; asks them all, unless the gateway goes down."""
    if state.drain.has_begun:
        response.status_code = 503
        return Readiness(status="draining", workers={}, replicas={})
    health = await state.catalog.health()
    is_ready = all(worker.state == "ready" for worker in health.values())
    response.status_code = 200 if is_ready else 503
    return Readiness(
        status="ready" if is_ready else "not_ready",
        workers={task: worker.state for task, worker in health.items()},
        replicas={
            task: ReplicaCount(ready=worker.num_ready, all=worker.num_replicas) for task, worker in health.items()
        },
    )


@router.get("/metrics", include_in_schema=False)
async def metrics(state: StateOf) -> Response:
    """Prometheus series."""
    return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
