"""Puts a worker's engine together from the registry and the settings."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from services.engine import default_type, memory
from services.engine.engine import Engine, Limits
from services.engine.failures import in_a_sentence
from services.engine.libraries import draw_no_bars, let_them_log_as_we_do
from services.engine.metrics import EngineMetrics
from services.engine.slots import Room, Slot
from services.engine.stepper import Stepper
from services.registry import (
    Adapter,
    FolderSource,
    HubFiles,
    HubSource,
    Model,
    OwnTerms,
    Task,
    load_models,
    local_models_of,
)
from services.settings import Settings

Make = Callable[[Model, Settings], Stepper[Any]]
logger = logging.getLogger("atelier.engine")
SHARE = 0.8  # of the memory that is free once a model is loaded; the rest is for what no estimate sees


def memory_budget(settings: Settings) -> float:
    """Bytes that the requests in progress may take together."""
    if settings.max_memory_mb is not None:
        return settings.max_memory_mb * 1e6
    from services.engine.placement import choose_placement  # needs torch, which the loaded model has imported

    return SHARE * memory.free_bytes(str(choose_placement(settings.device, settings.dtype).device))


def licence_refusal(model: Model, settings: Settings) -> str | None:
    """Say why weights whose licence limits commercial use are not loaded before the operator has accepted it.

    Those of an adapter are accepted as `model:adapter`; until then its model is not loaded either.
    """
    for name, owner in model.owners.items():
        source = None if owner.is_tiny_in(settings.profile) else owner.source
        if source is not None and not (source.commercial_use or name in settings.accept_licences):
            own = f"{source.licence} ({source.licence_url})" if source.licence else "terms that allow no commercial use"
            return f"model '{name}' comes under the {own}; the operator accepts it with ATELIER_ACCEPT_LICENCES={name}"
    return None


def provenance_of(owner: Model | Adapter, settings: Settings) -> str:
    """Say for the log where weights come from, and on what terms."""
    source = owner.source
    if owner.tiny is not None and (source is None or owner.is_tiny_in(settings.profile)):
        stands_for = f"; stands for weights under {terms_of(source)}" if source is not None else ""
        return f"built here by the recipe '{owner.tiny.recipe}'{stands_for}"
    if source is None:
        raise TypeError("weights come from somewhere")
    from services.engine.hub import address  # needs the hub's library, which BentoML's parent process does without

    where = address(source) if isinstance(source, HubFiles) else source.path
    barred = licence_refusal(owner, settings) if isinstance(owner, Model) else None
    return f"{where}, under {terms_of(source)}{f'; barred: {barred}' if barred is not None else ''}"


def terms_of(source: HubFiles | OwnTerms) -> str:
    """Name a licence, and where it is to be read."""
    named = " ".join(filter(None, (source.licence, f"({source.licence_url})" if source.licence_url else None)))
    use = "commercial use allowed" if source.commercial_use else "no commercial use"
    return f"{named or 'a licence that its entry does not name'}, {use}"


def expected_bytes(model: Model, settings: Settings) -> int:
    """Guess how many bytes the weights will take, by their files."""
    if isinstance(model.source, HubSource) and not model.is_tiny_in(settings.profile):
        return int(model.source.size_gb * 1e9)
    folder = settings.data_dir / "tiny" / model.tiny.recipe if model.tiny is not None else None
    if not model.is_tiny_in(settings.profile) and isinstance(model.source, FolderSource):
        folder = model.source.path
    if folder is None:
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in {".safetensors", ".bin"})


def weigh(stepper: Stepper[Any]) -> int:
    """Return how many bytes the weights of a loaded model take."""
    from services.engine import weights  # needs torch, which the loaded model has imported

    return weights.weigh(stepper)


def load(make: Make, model: Model, settings: Settings) -> Stepper[Any]:
    """Load a model; its libraries are imported here."""
    draw_no_bars(model.task)
    if settings.log_format == "json":
        let_them_log_as_we_do(model.task)
    from services.engine.weights import find_folder, wants_safetensors  # needs torch, which a model imports anyway

    find = partial(find_folder, model, settings, checks_all=True)
    safetensors = wants_safetensors(model, settings)
    with default_type.changed_in_turn(), in_a_sentence(model.id, find, wants_safetensors=safetensors):
        return make(model, settings)


def build_engine(
    task: Task,
    make: Make,
    settings: Settings,
    registry: CollectorRegistry = REGISTRY,
) -> Engine:
    """Give every model of `task` its slot; nothing is loaded before the engine starts.

    Raises:
        ValueError: there is none, as others serve them all.
    """
    models = local_models_of(task, load_models(settings.models_file, settings.profile))
    if not models:
        raise ValueError(f"this worker has no models: by ATELIER_MODELS_FILE others serve all those for {task}")
    for model in models:
        for name, owner in model.owners.items():
            logger.info("model %s: %s", name, provenance_of(owner, settings))
    slots = {
        model.id: Slot(
            partial(load, make, model, settings),
            model.is_preloaded_in(settings.profile),
            {"model": model.id, **model.defaults_in(settings.profile)},
            barred=licence_refusal(model, settings),
            is_pinned=model.pinned,
            is_swapped=model.strategy_in(settings.profile) == "swap",
            expected_bytes=expected_bytes(model, settings),
            weigh=weigh,
        )
        for model in models
    }
    room = Room(
        settings.max_models or math.inf,
        (settings.max_models_mb or math.inf) * 1e6,
        settings.keep_alive or math.inf,
    )
    waits = settings.cold_start == "wait"
    limits = Limits(settings.queue_size, settings.max_step_seconds, partial(memory_budget, settings), room, waits)
    return Engine(slots, EngineMetrics(task, registry), limits)
