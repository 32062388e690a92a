"""What the model libraries have to say: no progress bars, and where it is wanted in the form of our own log lines."""

import importlib
from typing import Any

from services.registry import Task

LIBRARIES: dict[Task, tuple[str, ...]] = {
    "text": ("transformers",),
    "audio": ("transformers",),
    "image": ("transformers", "diffusers"),
    "video": ("transformers", "diffusers"),
    "mesh": ("transformers", "diffusers"),
}


def draw_no_bars(task: Task) -> None:
    """Take their progress bars from the libraries of a task: a log is no screen."""
    for library in _logging_of(task):
        library.disable_progress_bar()


def let_them_log_as_we_do(task: Task) -> None:
    """Take their handlers from the libraries of a task: what they say goes to ours."""
    for library in _logging_of(task):
        library.disable_default_handler()
        library.enable_propagation()


def _logging_of(task: Task) -> list[Any]:
    return [importlib.import_module(f"{name}.utils.logging") for name in LIBRARIES[task]]
