"""Waiting for work only while there is a reason to; knows neither workers nor routes."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Never, TypeVar

from starlette.types import Receive

from gateway.errors import CallerLeft

T = TypeVar("T")


async def unless(work: Coroutine[Any, Any, T], *reasons: Coroutine[Any, Any, Never]) -> T:
    """Return what `work` gives, unless a reason to give it up raises before; nothing is left running.

    Where both happen at once the work counts: whoever owns its result can still close it.
    """
    tasks = [asyncio.ensure_future(awaited) for awaited in (work, *reasons)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(task for task in tasks if task.done())
        return first.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def caller_leaves(receive: Receive) -> Never:
    """Raise `CallerLeft` once the caller has; to be awaited when the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise CallerLeft("the caller left")


async def seconds_pass(seconds: float, error: Exception) -> Never:
    """Raise `error` after a time."""
    await asyncio.sleep(seconds)
    raise error
