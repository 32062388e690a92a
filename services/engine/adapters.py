"""An adapter's files: built here, the operator's, or the hub's at a pinned revision; all are a folder."""

from pathlib import Path

from services.engine.hub import fetch
from services.errors import ModelUnavailable
from services.registry import Adapter, AdapterFolder, Model
from services.settings import Settings
from services.tiny.build import ensure


def open_adapter(adapter: Adapter, model: Model, settings: Settings) -> Path:
    """Bring the weights of an adapter of `model` onto this machine, and return their folder.

    Raises:
        ModelUnavailable: they cannot be had.
    """
    source = adapter.source
    if adapter.tiny is not None and adapter.is_tiny_in(settings.profile):
        return ensure(adapter.tiny.recipe, settings.data_dir / "tiny")
    if isinstance(source, AdapterFolder):
        if not source.path.is_dir():
            raise ModelUnavailable(f"adapter '{adapter.name}' of model '{model.id}': there is no folder {source.path}")
        return source.path
    if source is None:
        raise TypeError("an adapter has its weights from somewhere")
    return fetch(f"{model.id}:{adapter.name}", source)
