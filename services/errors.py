"""What can go wrong in a worker, by what the caller can do about it; the one place that turns it into HTTP.

ServiceError
├── InvalidRequest    400  change the field it names
├── ContentRefused    400  the model's own safety checker refused the result
├── NotOurGateway     401  ask the gateway
├── UnknownModel      404  choose another model
├── PayloadTooLarge   413  send less
├── NotJson           415  send JSON
├── QueueFull         429  come back after `retry_after`
├── NotInstalled      501  leave out what needs it, or ask the operator to install it
├── GenerationFailed  500  the model failed on this request; the worker goes on
├── ModelLoading      503  come back after `retry_after`
├── ModelUnavailable  503  the operator has to act: the model could not be loaded
└── DeadlineExceeded  504  ask for less, or wait longer

Cancelled stands apart: nobody is there to be told.
"""

from starlette.responses import JSONResponse

from services.schema import envelope


class ServiceError(Exception):
    """An error with a status, a code, and a sentence that a client may read."""

    status: int = 500
    code: str = "internal_error"
    should_retry: bool = False

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        """Take a sentence for the client, the field it is about, a finer code, and seconds to wait."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after = retry_after  # seconds


class InvalidRequest(ServiceError):
    """The request cannot be served as it is; `param` names the field."""

    status, code = 400, "invalid_value"


class ContentRefused(ServiceError):
    """The checkpoint's safety checker refused what the model made."""

    status, code = 400, "content_policy_violation"


class NotOurGateway(ServiceError):
    """The request has not come through the gateway that this worker belongs to."""

    status, code = 401, "not_our_gateway"


class UnknownModel(ServiceError):
    """No model of that id is served here."""

    status, code = 404, "model_not_found"


class PayloadTooLarge(ServiceError):
    """The body is longer than the operator allows."""

    status, code = 413, "payload_too_large"


class NotJson(ServiceError):
    """The body is of another type than the route takes."""

    status, code = 415, "unsupported_media_type"


class QueueFull(ServiceError):
    """More requests wait than the operator allows."""

    status, code, should_retry = 429, "queue_full", True


class NotInstalled(ServiceError):
    """An option needs software that this worker does not have."""

    status, code = 501, "not_installed"


class GenerationFailed(ServiceError):
    """The model raised; what it said is in the worker's log."""

    code = "generation_failed"


class ModelLoading(ServiceError):
    """The model is on its way into memory."""

    status, code, should_retry = 503, "model_loading", True


class ModelUnavailable(ServiceError):
    """The model could not be loaded; without `retry_after` trying again will not help before the operator acts."""

    status, code = 503, "model_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Take a sentence, and seconds until it may be another one."""
        super().__init__(message, retry_after=retry_after)
        self.should_retry = retry_after is not None


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before the result was there."""

    status, code = 504, "deadline_exceeded"

    def __init__(self) -> None:
        """Say it in the same words wherever it is noticed."""
        super().__init__("the deadline passed before the result was there; ask for less or allow more time")


class Cancelled(Exception):
    """The caller left: the model stops at its next iteration."""


def render(error: ServiceError) -> JSONResponse:
    """Answer with the envelope that OpenAI clients parse, and say whether a repeat makes sense."""
    headers = {"x-should-retry": "true" if error.should_retry else "false"}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    body = envelope(error.status, error.message, error.code, error.param)
    return JSONResponse(body.model_dump(), error.status, headers)
