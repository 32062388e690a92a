"""What holds while a checkpoint is made: one seed and no progress bars; afterwards the caller's state is back."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging


@contextmanager
def workbench() -> Iterator[None]:
    """Make equal bytes on every call, and let the caller's random numbers go on as if nothing had been drawn."""
    hook = logging.set_tqdm_hook(_without_bar)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "__array__ implementation doesn't accept")  # diffusers' schedules
            torch.default_generator.manual_seed(0)  # torch.manual_seed would set the accelerators' too
            yield
    finally:
        logging.set_tqdm_hook(hook)


def _without_bar(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return logging.EmptyTqdm(*args, **kwargs)
