"""What the model libraries have to say, in the form of our own log lines."""

import importlib

from services.registry import Task

LIBRARIES: dict[Task, tuple[str, ...]] = {
    "text": ("transformers",),
    "audio": ("transformers",),
    "image": ("transformers", "diffusers"),
    "video": ("transformers", "diffusers"),
    "mesh": ("transformers", "diffusers"),
}


def let_them_log_as_we_do(task: Task) -> None:
    """Take their handlers from the libraries of a task, and their progress bars: what they say goes to ours."""
    for name in LIBRARIES[task]:
        library = importlib.import_module(f"{name}.utils.logging")
        library.disable_default_handler()
        library.enable_propagation()
        library.disable_progress_bar()
