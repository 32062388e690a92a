"""What a caller asked for, on its way to whoever takes it on: a worker of ours, or a provider."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from gateway.errors import GatewayError
from gateway.waiting import Reason


@dataclass(frozen=True)
class Errand:
    """What is sent on.

    Args:
        request: the caller's, whose leaving ends the work.
        path: of the route that is asked.
        accept: the media type wanted.
        body: `content`, `files` or `data`, as httpx takes them.
        renamed: the worker's names of fields that the caller calls otherwise.
        left: is done when the caller has left.
        ends_at: when the answer must have begun, by the event loop's clock.
        attempt: which of the request the first try is.
    """

    request: Request
    path: str
    accept: str
    body: Mapping[str, Any]
    renamed: Mapping[str, str]
    left: Reason
    ends_at: float
    attempt: int = 1

    @property
    def seconds_left(self) -> float:
        """Until the answer must have begun."""
        return self.ends_at - asyncio.get_running_loop().time()


class Absent(Exception):
    """Behind the address of a replica there is no worker now: what stands before it says so. Another may be asked."""


class Declined(Exception):
    """The errand has surely not been taken on, and somebody else may be asked."""

    def __init__(self, error: GatewayError) -> None:
        """Take what the caller is told if there is nobody else."""
        super().__init__(str(error))
        self.error = error
