"""What can go wrong on this side of a worker, by what the caller can do about it; rendered in one place.

GatewayError
├── NotSignable        400  ask for another path
├── ContentRefused     400  ask for something else: the operator's content policy does not allow it
├── InvalidSignature   401  ask for a new signed URL
├── NotAWorker         401  nothing: this route is for the gateway's own workers
├── PayloadTooLarge    413  send less
├── NotServed          503  choose another modality: the operator serves no such worker
├── NoProvider         503  the operator has set no outside model server
├── ModerationUnavailable 503  come back: the prompt cannot be judged right now
├── Restarting         503  come back after `retry_after`: this gateway goes down before the answer has begun
├── WorkerUnreachable  503  nothing was sent to a model; safe to retry after `retry_after`
├── WorkerDied         503  the worker went away while it worked; a repeat starts over, and may bring it down again
├── WorkerTimedOut     504  no result within the deadline; a repeat would start over
├── WorkerRefused      the worker's own status and words
├── ProviderFailed     502  the outside model server failed, or refused the operator's key
└── CallerLeft         499  nothing: nobody is there to be told
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from services.schema import envelope, explain

FILE_FIELDS = {"/generate/video": "image"}  # what an upload that cannot be read is named by


class GatewayError(Exception):
    """An error with a status, a code, and a sentence that a client may read."""

    status: int = 500
    code: str = "internal_error"
    should_retry: bool = False
    retry_after: int | None = None  # seconds
    param: str | None = None

    @property
    def reason(self) -> str:
        """What metrics call it."""
        return self.code


class NotSignable(GatewayError):
    """What is to be signed is no link that can be."""

    status, code, param = 400, "invalid_value", "path"


class ContentRefused(GatewayError):
    """A prompt is against the operator's content policy."""

    status, code = 400, "content_policy_violation"


class InvalidSignature(GatewayError):
    """The link's signature is another's, or its time is over."""

    status, code = 401, "invalid_signature"


class PayloadTooLarge(GatewayError):
    """The body is longer than the operator allows."""

    status, code = 413, "payload_too_large"


class NotAWorker(GatewayError):
    """Who asks does not have the token that gateway and workers share."""

    status, code = 401, "not_a_worker"


class NotServed(GatewayError):
    """No worker is configured for this modality."""

    status, code = 503, "modality_not_served"


class NoProvider(GatewayError):
    """No outside model server is configured."""

    status, code = 503, "provider_not_configured"


class ModerationUnavailable(GatewayError):
    """The outside moderation gives no answer, and nothing may pass without."""

    status, code, should_retry, retry_after = 503, "moderation_unavailable", True, 3


class Restarting(GatewayError):
    """The gateway goes down, and the answer has not begun."""

    status, code, should_retry, retry_after = 503, "gateway_restarting", True, 3


class WorkerUnreachable(GatewayError):
    """The worker takes no connection, or has stopped answering before it answered this request."""

    status, code, should_retry, retry_after = 503, "worker_unavailable", True, 3


class WorkerDied(GatewayError):
    """The connection broke after the request was sent and before the answer began."""

    status, code, retry_after = 503, "worker_died", 3


class WorkerTimedOut(GatewayError):
    """The deadline passed."""

    status, code = 504, "deadline_exceeded"


class ProviderFailed(GatewayError):
    """The outside model server gave no usable answer."""

    status, code = 502, "provider_failed"


class CallerLeft(GatewayError):
    """The caller closed the connection before the answer; the status is for the usage log."""

    status, code = 499, "client_closed_request"


class WorkerRefused(GatewayError):
    """The worker answered 4xx or 5xx."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None, should_retry: bool, retry_after: int | None
    ) -> None:
        """Take over what the worker said."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.should_retry = should_retry
        self.retry_after = retry_after

    @property
    def reason(self) -> str:
        """What metrics call it: the code is the worker's own, and could be any."""
        return f"worker_{self.status}"


def render(error: GatewayError) -> JSONResponse:
    """Answer with the envelope that OpenAI clients parse, and say whether a repeat makes sense."""
    headers = {"x-should-retry": "true" if error.should_retry else "false"}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == PayloadTooLarge.status:
        headers["connection"] = "close"  # the rest of the body is not read
    body = envelope(error.status, str(error), error.code, error.param)
    return Refusal(body.model_dump(), error.status, headers, reason=error.reason)


class Refusal(JSONResponse):
    """An error's answer, which leaves word of its reason for the books."""

    def __init__(self, content: Any, status: int, headers: Mapping[str, str], *, reason: str) -> None:
        """Answer; `reason` is one of few, as it is a label."""
        super().__init__(content, status, headers)
        self._reason = reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave word; send."""
        scope["refusal"] = self._reason
        await super().__call__(scope, receive, send)


async def render_gateway_error(request: Request, error: Exception) -> JSONResponse:
    """Answer a `GatewayError`."""
    assert isinstance(error, GatewayError)  # noqa: S101 - what it is registered for
    return render(error)


async def render_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer what FastAPI's validation found, naming the first field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    first = error.errors()[0]
    # The first part of the location is where the field was: query, body, path or header.
    message, param = explain({**first, "loc": first["loc"][1:]})
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return JSONResponse(envelope(400, message, code, param).model_dump(), 400)


async def render_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer what the framework raises itself: no such route, wrong method, a body that cannot be parsed."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    status = HTTPStatus(error.status_code)
    words = {
        404: f"there is no route {request.method} {request.url.path}; /docs lists what there is",
        405: f"{request.url.path} does not take {request.method}",
    }
    param = FILE_FIELDS.get(request.url.path) if status is HTTPStatus.BAD_REQUEST else None  # a form that is none
    body = envelope(status, words.get(status, error.detail), status.name.lower(), param)
    return JSONResponse(body.model_dump(), status, error.headers)
