"""What all workers' contracts share: the kinds of field, the error envelope, the headers between gateway and worker."""

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

DEADLINE_HEADER: Final = "x-atelier-deadline"  # seconds that the caller still waits
MAX_SEED: Final = 2**53 - 1  # the largest integer that every JSON reader keeps

ALLOWED_CONTROLS = frozenset("\n\r\t")


def check_is_text(value: str) -> str:
    """Refuse what nobody typed: only blanks, control characters, halves of characters."""
    if not value.strip():
        raise ValueError("must not be empty")
    for character in value:
        is_control = unicodedata.category(character) in {"Cc", "Cs"} and character not in ALLOWED_CONTROLS
        if is_control or character == "\N{REPLACEMENT CHARACTER}":
            raise ValueError("must be text; it holds control characters or bytes that are not UTF-8")
    return value


def check_size(value: str) -> str:
    """Refuse a size that the models' eight-fold downsampling cannot halve three times, or that no one can pay for."""
    width, height = parse_size(value)
    if width % 8 or height % 8:
        raise ValueError("width and height must be divisible by 8")
    if not (64 <= width <= 2048 and 64 <= height <= 2048):
        raise ValueError("width and height must be between 64 and 2048 pixels")
    return value


def parse_size(value: str) -> tuple[int, int]:
    """Split `"512x384"` into width and height in pixels."""
    width, height = value.split("x")
    return int(width), int(height)


Prompt = Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(check_is_text)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, description="the same seed gives the same result on the same build")]
Size = Annotated[
    str,
    StringConstraints(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"),
    AfterValidator(check_size),
    Field(description="width x height in pixels, both divisible by 8", examples=["512x512"]),
]
Steps = Annotated[int, Field(ge=1, le=200, description="denoising steps; more take longer")]
Guidance = Annotated[float, Field(ge=0, le=50, description="how strictly the prompt is followed")]
ModelId = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Body(BaseModel):
    """A request body of ours: frozen, and a field we do not know is an error, not silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)  # prompts stay out of logs


class GenerationRequest(Body):
    """What every request for a generation has."""

    model: ModelId | None = None
    seed: Seed | None = None


Job = TypeVar("Job", bound=GenerationRequest)


def complete(job: type[Job], request: GenerationRequest, defaults: Mapping[str, Any]) -> Job:
    """Fill what the caller left out with the model's defaults; a job is a request in which nothing is left out."""
    return job.model_validate({**defaults, **request.model_dump(exclude_none=True)})


def explain(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """Turn one of pydantic's errors into a sentence and the field it names, if it names one."""
    field = ".".join(str(part) for part in error["loc"]) or None
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "there is no such parameter here"
    return (f"{field}: {message}" if field else message), field


class ErrorDetail(BaseModel):
    """What went wrong, in the words of OpenAI's API."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def envelope(status: int, message: str, code: str, param: str | None = None) -> ErrorEnvelope:
    """Wrap an error for the wire; the type follows from the status."""
    return ErrorEnvelope(error=ErrorDetail(message=message, type=error_type(status), param=param, code=code))


def error_type(status: int) -> str:
    """The OpenAI error type of an HTTP status."""
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error"
    )
