"""Reads what a worker, or a provider, says instead of an answer."""

from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import responses

import httpx
from pydantic import ValidationError

from gateway.errand import Absent
from gateway.errors import WorkerDied, WorkerRefused
from services.schema import ErrorDetail, ErrorEnvelope, error_type

MAX_ERROR_BYTES = 65_536
RETRY_AFTER = 3  # seconds, where a busy worker does not say
# Of what stands before workers and finds none, or loses one: theirs are in envelopes.
NOBODY_THERE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE})
LOST = frozenset({HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT})


async def workers_refusal(upstream: httpx.Response, renamed: Mapping[str, str]) -> WorkerRefused:
    """Read an error of a worker, or of a proxy before it, and close.

    Raises:
        Absent: the proxy has found no worker.
        WorkerDied: it has lost the one that worked on this.
    """
    refused = await refusal(upstream, renamed)
    if not refused.is_in_envelope and upstream.status_code in NOBODY_THERE:
        raise Absent("a proxy finds no worker") from refused
    if not refused.is_in_envelope and upstream.status_code in LOST:
        raise WorkerDied("the worker went away while it worked on this; try again") from refused
    return refused


async def refusal(upstream: httpx.Response, renamed: Mapping[str, str], who: str = "worker") -> WorkerRefused:
    """Read an error of a worker, or of `who` else, and close."""
    is_in_envelope = True
    try:
        said = ErrorEnvelope.model_validate_json(await error_body(upstream)).error
    except ValidationError:
        said, is_in_envelope = unreadable(upstream.status_code, who), False
    finally:
        await upstream.aclose()
    status = upstream.status_code if upstream.is_error else HTTPStatus.BAD_GATEWAY
    is_busy = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    should_retry = upstream.headers.get("x-should-retry", str(is_busy)).lower() == "true"
    retry_after = upstream.headers.get("retry-after", "")
    return WorkerRefused(
        status,
        in_callers_words(said.message, said.param, renamed),
        said.code or f"{who}_error",
        renamed.get(said.param or "", said.param),
        should_retry=should_retry,
        retry_after=int(retry_after) if retry_after.isdecimal() else RETRY_AFTER if should_retry and is_busy else None,
        is_in_envelope=is_in_envelope,
    )


async def error_body(upstream: httpx.Response) -> bytes:
    """The beginning of an error's body, as far as it comes; what is cut off cannot be parsed, and says nothing."""
    body = b""
    with suppress(httpx.HTTPError):
        async for chunk in upstream.aiter_raw():
            body += chunk
            if len(body) > MAX_ERROR_BYTES:
                break
    return body[:MAX_ERROR_BYTES]


def in_callers_words(message: str, param: str | None, renamed: Mapping[str, str]) -> str:
    """`message` with the caller's name of the field that it begins with."""
    field, colon, rest = message.partition(": ")
    return f"{renamed[field]}{colon}{rest}" if field == param and field in renamed else message


def unreadable(status: int, who: str) -> ErrorDetail:
    """What to say for somebody whose error is in no envelope: its own words may not be for clients."""
    phrase = responses.get(status, "Unknown Error")
    code = phrase.lower().replace(" ", "_")
    return ErrorDetail(message=f"the {who} answered {status} {phrase}", type=error_type(status), code=code)
