"""Puts a worker's engine together from the registry and the settings."""

from collections.abc import Callable
from functools import partial

from services.engine.engine import Engine, Generator, Slot
from services.engine.metrics import EngineMetrics
from services.registry import Model, Task, load_models, models_of
from services.settings import Settings


def build_engine(task: Task, make: Callable[[Model, Settings], Generator], settings: Settings) -> Engine:
    """Give every model of `task` its slot; nothing is loaded before the engine starts."""
    slots = {
        model.id: Slot(
            partial(make, model, settings),
            model.is_preloaded_in(settings.profile),
            {"model": model.id, **model.defaults_in(settings.profile)},
        )
        for model in models_of(task, load_models())
    }
    return Engine(slots, EngineMetrics(task), settings.queue_size)
