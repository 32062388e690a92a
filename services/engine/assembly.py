"""Puts a worker's engine together from the registry and the settings."""

from collections.abc import Callable
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry

from services.engine.engine import Engine, Generator, Slot
from services.engine.metrics import EngineMetrics
from services.registry import Model, Task, load_models, models_of
from services.settings import Settings


def licence_refusal(model: Model, settings: Settings) -> str | None:
    """Say why weights whose licence limits commercial use are not loaded before the operator has accepted it."""
    if settings.profile == "tiny" or model.hub.commercial_use or model.id in settings.accept_licences:
        return None
    return (
        f"model '{model.id}' comes under the {model.hub.licence} ({model.hub.licence_url}); "
        f"the operator accepts it with ATELIER_ACCEPT_LICENCES={model.id}"
    )


def build_engine(
    task: Task,
    make: Callable[[Model, Settings], Generator],
    settings: Settings,
    registry: CollectorRegistry = REGISTRY,
) -> Engine:
    """Give every model of `task` its slot; nothing is loaded before the engine starts."""
    slots = {
        model.id: Slot(
            partial(make, model, settings),
            model.is_preloaded_in(settings.profile),
            {"model": model.id, **model.defaults_in(settings.profile)},
            failure=licence_refusal(model, settings),
        )
        for model in models_of(task, load_models())
    }
    return Engine(slots, EngineMetrics(task, registry), settings.queue_size)
