"""torch's default type is one for the whole process, and libraries set another while they build a model.

Forwards make tensors of the default type: they wait for those moments, and the loader's thread waits for them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_news = threading.Condition()
_num_forwards = 0
_is_other = False


@contextmanager
def kept() -> Iterator[None]:
    """Let nobody change the type meanwhile."""
    global _num_forwards
    with _news:
        _news.wait_for(lambda: not _is_other)
        _num_forwards += 1
    try:
        yield
    finally:
        with _news:
            _num_forwards -= 1
            _news.notify_all()


def _note(*, is_other: bool) -> None:
    global _is_other
    with _news:
        _is_other = is_other
        _news.notify_all()
        _news.wait_for(lambda: not is_other or not _num_forwards)


@contextmanager
def changed_in_turn() -> Iterator[None]:
    """Let what is called here change the type only between forwards, for as long as it has it changed.

    One thread at a time.
    """
    import torch  # the engine does without it until a model is loaded

    library: Any = torch
    change, usual = torch.set_default_dtype, torch.get_default_dtype()

    def change_in_turn(dtype: torch.dtype) -> None:
        if dtype != usual:
            _note(is_other=True)
        change(dtype)
        if dtype == usual:
            _note(is_other=False)

    library.set_default_dtype = change_in_turn
    try:
        yield
    finally:
        library.set_default_dtype = change
        change_in_turn(usual)
