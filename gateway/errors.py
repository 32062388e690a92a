"""What can go wrong on this side of a worker, by what the caller can do about it; rendered in one place.

GatewayError
├── NotSignable        400  ask for another path
├── UrlNotAllowed      400  name another URL: this one is not for us to ask
├── PictureNotFetched  400  name another URL, or send the picture itself
├── ContentRefused     400  ask for something else: the operator's content policy does not allow it
├── InvalidSignature   401  ask for a new signed URL
├── NotAWorker         401  nothing: this route is for the gateway's own workers
├── InvalidKey         401  send a key that is valid
├── InsufficientScope  403  ask the operator for a key with this scope
├── ModelNotAllowed    403  choose a model that the key may use
├── NoSuchKey          404  choose another key to look at, to change or to revoke
├── NoSuchPlace        404  begin anew, without `after`: what it names is not there (any more)
├── NoSuchArtefact     404  nothing: the file has been deleted
├── KeyRevoked         409  make another key: this one has ended for good
├── RangeNotSatisfiable 416  ask for a part that there is
├── WrongHost          421  call the gateway by its own name
├── InsufficientQuota  429  ask for less, or come back after `retry_after`: in the next day or month
├── RateLimited        429  ask less often, or for less at once; come back after `retry_after`
├── KeysUnavailable    503  come back after `retry_after`: the database does not answer
├── LimitsUnavailable  503  likewise: Redis does not
├── BudgetsUnavailable 503  likewise: the database does not
├── UsageUnavailable   503  likewise
├── ArtefactsUnavailable 503  likewise: the store of results does not
├── StorageFull        507  ask for less; the operator has to make room
├── PayloadTooLarge    413  send less
├── NotServed          503  choose another modality: the operator serves no such worker
├── NoProvider         503  the operator has set no outside model server
├── ModerationUnavailable 503  come back: the prompt cannot be judged right now
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

Misconfigured stands apart: it is for the operator, and the gateway does not start.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from services.schema import envelope, explain

FILE_FIELDS = {
    "/generate/video": "image",
    "/v1/images/edits": "image",
    "/v1/content_provenance_checks": "file",
}  # what an upload that cannot be read is named by


NEVER_AGAIN = MappingProxyType({"x-should-retry": "false"})


class GatewayError(Exception):
    """An error with a status, a code, and a sentence that a client may read."""

    status: int = 500
    code: str = "internal_error"
    should_retry: bool = False
    retry_after: int | None = None  # seconds
    param: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    nothing_was_made: bool = False  # surely: what the request reserved is given back

    @property
    def reason(self) -> str:
        """What metrics call it."""
        return self.code


class Misconfigured(Exception):
    """The settings do not go together; the sentence says which to change."""


@contextmanager
def told_of(setting: str, file: Path) -> Iterator[None]:
    """Say in a sentence what is wrong with the file that a setting names.

    Raises:
        Misconfigured: it cannot be read, or something in it does not fit.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Misconfigured(f"{setting}: {file}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{setting}: {file} cannot be read: {error}") from error


class InvalidKey(GatewayError):
    """There is no key, or it is none that opens anything."""

    status, code = 401, "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class InsufficientScope(GatewayError):
    """The key is not for this."""

    status, code = 403, "insufficient_scope"


class ModelNotAllowed(GatewayError):
    """The key is for other models."""

    status, code, param = 403, "model_not_allowed", "model"


class NoSuchKey(GatewayError):
    """There is no key of that id."""

    status, code = 404, "key_not_found"


class NoSuchPlace(GatewayError):
    """What a list was to go on after is not there, or is another's: an empty page would look like the end."""

    status, code, param = 404, "after_not_found", "after"

    def __init__(self, after: object) -> None:
        """Take what was named."""
        super().__init__(f"after: there is no '{after}' in this list (any more); leave `after` out to begin anew")


class KeyRevoked(GatewayError):
    """What has ended is not changed."""

    status, code = 409, "key_revoked"


class WrongHost(GatewayError):
    """Without keys, only pages and programs that know this machine by its own name are served."""

    status, code = 421, "wrong_host"


class RateLimited(GatewayError):
    """The key has asked for as much as it may for the moment."""

    status, code, should_retry = 429, "rate_limit_exceeded", True

    def __init__(self, message: str, retry_after: int) -> None:
        """Take a sentence, and seconds to wait."""
        super().__init__(message)
        self.retry_after = max(1, retry_after)


class InsufficientQuota(GatewayError):
    """A budget of the key does not allow what is asked for."""

    status, code = 429, "insufficient_quota"

    def __init__(self, message: str, budget: str, retry_after: int) -> None:
        """Take a sentence, the budget's name, and the seconds until it begins anew."""
        super().__init__(message)
        self.param = budget
        self.retry_after = retry_after


class BudgetsUnavailable(GatewayError):
    """What a request may use cannot be reserved."""

    status, code, should_retry, retry_after = 503, "budgets_unavailable", True, 3


class LimitsUnavailable(GatewayError):
    """What a key has asked for cannot be counted, and the operator has set that nothing goes uncounted."""

    status, code, should_retry, retry_after = 503, "limits_unavailable", True, 3


class KeysUnavailable(GatewayError):
    """The database that holds the keys does not answer."""

    status, code, should_retry, retry_after = 503, "keys_unavailable", True, 3


class UsageUnavailable(GatewayError):
    """The database that holds the usage log does not answer; who has something to be written keeps it."""

    status, code, should_retry, retry_after = 503, "usage_unavailable", True, 3


class ArtefactsUnavailable(GatewayError):
    """What keeps the results does not answer, or refuses."""

    status, code, should_retry, retry_after = 503, "artefacts_unavailable", True, 3


class StorageFull(GatewayError):
    """There is no room for a result."""

    status, code = 507, "storage_full"


class NoSuchArtefact(GatewayError):
    """The file is not kept any more."""

    status, code = 404, "artefact_not_found"


class RangeNotSatisfiable(GatewayError):
    """The part that is asked for begins behind the file's end."""

    status, code, param = 416, "range_not_satisfiable", "range"

    def __init__(self, num_bytes: int) -> None:
        """Say how long the file is."""
        super().__init__(f"the file has {num_bytes} bytes, and no such part")
        self.headers = {"content-range": f"bytes */{num_bytes}"}


class NotSignable(GatewayError):
    """What is to be signed is no link that can be."""

    status, code, param = 400, "invalid_value", "path"


class UrlNotAllowed(GatewayError):
    """A URL that the caller names is none, or leads where callers may not send us."""

    status, code = 400, "url_not_allowed"

    def __init__(self, message: str, param: str | None = None) -> None:
        """Take a sentence, and the field that has the URL."""
        super().__init__(f"{param}: {message}" if param else message)
        self.sentence = message
        self.param = param


class PictureNotFetched(GatewayError):
    """A URL leads to no picture that could be had."""

    status, code = 400, "invalid_image_url"

    def __init__(self, message: str, param: str) -> None:
        """Take a sentence, and the field that has the URL."""
        super().__init__(f"{param}: {message}")
        self.param = param


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
    nothing_was_made = True


class NoProvider(GatewayError):
    """No outside model server is configured."""

    status, code = 503, "provider_not_configured"
    nothing_was_made = True


class ModerationUnavailable(GatewayError):
    """The outside moderation gives no answer, and nothing may pass without."""

    status, code, should_retry, retry_after = 503, "moderation_unavailable", True, 3


class Restarting(GatewayError):
    """The gateway goes down, and the answer has not begun."""

    status, code, should_retry, retry_after = 503, "gateway_restarting", True, 3


class WorkerUnreachable(GatewayError):
    """The worker takes no connection, or has stopped answering before it answered this request."""

    status, code, should_retry, retry_after = 503, "worker_unavailable", True, 3
    nothing_was_made = True


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
    nothing_was_made = True


class ProviderResting(GatewayError):
    """The outside model server has failed again and again, and is left alone for a while."""

    status, code, should_retry = 503, "provider_unavailable", True
    nothing_was_made = True


class UnknownModel(GatewayError):
    """No model of that id is served for this task."""

    status, code, param = 404, "model_not_found", "model"


class CallerLeft(GatewayError):
    """The caller closed the connection before the answer; the status is for the usage log."""

    status, code = 499, "client_closed_request"


class WorkerRefused(GatewayError):
    """The worker answered 4xx or 5xx."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None,
        should_retry: bool,
        retry_after: int | None,
        is_in_envelope: bool = True,
    ) -> None:
        """Take over what the worker said; `is_in_envelope`: as workers do."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.should_retry = should_retry
        self.retry_after = retry_after
        self.is_in_envelope = is_in_envelope
        self.nothing_was_made = status < 500 or should_retry

    @property
    def reason(self) -> str:
        """What metrics call it: the code is the worker's own, and could be any."""
        return f"worker_{self.status}"


def render(error: GatewayError) -> JSONResponse:
    """Answer with the envelope that OpenAI clients parse, and say whether a repeat makes sense."""
    headers = {"x-should-retry": "true" if error.should_retry else "false", **error.headers}
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
    request.scope["nothing_was_made"] = error.nothing_was_made
    await request.scope["leases"].aclose()  # before the answer: who asks again at once shall not meet what he held
    return render(error)


async def render_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer what FastAPI's validation found, naming the first field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    first = error.errors()[0]
    # The first part of the location is where the field was: query, body, path or header.
    message, param = explain({**first, "loc": first["loc"][1:]})
    return JSONResponse(envelope(400, message, code_of(first["type"]), param).model_dump(), 400, NEVER_AGAIN)


def code_of(kind: str) -> str:
    """OpenAI's code for one of pydantic's kinds of error; what a model does not have comes with a code."""
    if kind == "unknown_adapter":
        return kind
    if kind == "extra_forbidden":
        return "unknown_parameter"
    return "invalid_type" if kind.endswith("_type") or kind == "int_from_float" else "invalid_value"


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
    return JSONResponse(body.model_dump(), status, {**NEVER_AGAIN, **(error.headers or {})})
