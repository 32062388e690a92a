"""Copies of trained checkpoints, for tests that spoil them."""

import shutil
from pathlib import Path

from services.registry import FolderSource, Model


def copied(model: Model, folder: Path) -> Model:
    """Return the model with its weights in `folder`, and without adapters."""
    assert model.folder is not None
    shutil.copytree(model.folder.path, folder, dirs_exist_ok=True)
    return model.model_copy(update={"folder": FolderSource(path=folder), "adapters": ()})
