"""What can go wrong on this side of a worker, by what the caller can do about it; rendered in one place.

GatewayError
├── PayloadTooLarge    413  send less
├── NotServed          503  choose another modality: the operator serves no such worker
├── NoProvider         503  the operator has set no outside model server
├── Restarting         503  come back after `retry_after`: this gateway goes down before the answer has begun
├── WorkerUnreachable  503  nothing was sent to a model; safe to retry after `retry_after`
├── WorkerDied         503  the worker went away while it worked; a repeat starts over, and may bring it down again
├── WorkerTimedOut     504  no result within the deadline; a repeat would start over
├── UnknownModel       404  choose another model
├── WorkerRefused      the worker's own status and words, or a provider's about what the caller sent
├── ProviderFailed     502  the outside model server failed, or refused the operator's key
├── ProviderBusy       429  come back after `retry_after`: the outside model server takes no more
├── ProviderResting    503  come back after `retry_after`: it has failed too often to be asked now
└── CallerLeft         499  nothing: nobody is there to be told
"""

from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from services.schema import envelope, explain

FILE_FIELDS = {"/generate/video": "image"}  # what an upload that cannot be read is named by


class GatewayError(Exception):
    """An error with a status, a code, and a sentence that a client may read."""

    status: int = 500
    code: str = "internal_error"
    should_retry: bool = False
    retry_after: int | None = None  # seconds
    param: str | None = None


class PayloadTooLarge(GatewayError):
    """The body is longer than the operator allows."""

    status, code = 413, "payload_too_large"


class NotServed(GatewayError):
    """No worker is configured for this modality."""

    status, code = 503, "modality_not_served"


class NoProvider(GatewayError):
    """No outside model server is configured."""

    status, code = 503, "provider_not_configured"


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


class ProviderBusy(GatewayError):
    """The outside model server takes no more for now."""

    status, code, should_retry = 429, "provider_busy", True


class ProviderResting(GatewayError):
    """The outside model server has failed again and again, and is left alone for a while."""

    status, code, should_retry = 503, "provider_unavailable", True


class UnknownModel(GatewayError):
    """No model of that id is served for this task."""

    status, code, param = 404, "model_not_found", "model"


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


def render(error: GatewayError) -> JSONResponse:
    """Answer with the envelope that OpenAI clients parse, and say whether a repeat makes sense."""
    headers = {"x-should-retry": "true" if error.should_retry else "false"}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == PayloadTooLarge.status:
        headers["connection"] = "close"  # the rest of the body is not read
    body = envelope(error.status, str(error), error.code, error.param)
    return JSONResponse(body.model_dump(), error.status, headers)


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
