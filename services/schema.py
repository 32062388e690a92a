"""What all workers' contracts share: the kinds of field, the error envelope, the headers between gateway and worker."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
)

DEADLINE_HEADER: Final = "x-atelier-deadline"  # seconds that the caller still waits
CALLER_HEADER: Final = "x-atelier-caller"  # who asks; callers take turns
PRIORITY_HEADER: Final = "x-atelier-priority"  # whole number, 0 where there is none; the higher is served first
MAX_PRIORITY: Final = 100
REQUEST_HEADER: Final = "x-request-id"
ATTEMPT_HEADER: Final = "x-atelier-attempt"  # how often this request has been sent to a worker, itself included
MAX_ATTEMPT: Final = 999
TOKEN_HEADER: Final = "x-atelier-token"  # noqa: S105 - the name of the header, by which gateway and workers know each other
RUN_HEADERS: Final = (  # of an answer, as far as they are known when it begins
    "x-seed",
    "x-model",
    "x-queue-position",  # requests that were ahead when this one came
    "x-queue-seconds",
    "x-iterations",
    "x-generation-seconds",
)
CONVERSIONS: Final = "/v1/conversions"  # where a worker writes a finished file in another format
MAX_CONVERTED: Final = 64_000_000  # bytes of such a file, which gateway and worker hold in memory
FINAL_EVENTS: Final = "text/event-stream; final=1"  # as `Accept`: events with files that are finished, for jobs
MEDIA_TYPES: Final[Mapping[str, str]] = {  # by the words for formats
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
MAX_SEED: Final = 2**53 - 1  # the largest integer that every JSON reader keeps

# Control characters but tab, line feed and carriage return; what broken UTF-8 is decoded to.
UNTYPED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\N{REPLACEMENT CHARACTER}]")
INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # Unicode's control, format and space characters
SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")


def check_is_text(value: str) -> str:
    """Refuse what nobody typed: nothing that can be seen, control characters, the debris of another encoding."""
    check_is_clean(value)
    if all(unicodedata.category(character) in INVISIBLE for character in value):
        raise ValueError("must not be empty")
    return value


def check_is_clean(value: str) -> str:
    """Refuse control characters and the debris of another encoding."""
    if UNTYPED.search(value):
        raise ValueError("must be text; it holds control characters or bytes that are not UTF-8")
    return value


def check_size(value: str) -> str:
    """Refuse a size that the models' eight-fold downsampling cannot halve three times, or that no one can pay for."""
    if not SIZE.fullmatch(value):
        raise ValueError("must be width x height in pixels, such as 512x512")
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
    AfterValidator(check_size),
    Field(description="width x height in pixels, both divisible by 8 and at most 2048", examples=["512x512"]),
]
Steps = Annotated[int, Field(ge=1, le=200, description="denoising steps; more take longer")]
Guidance = Annotated[float, Field(ge=0, le=50, description="how strictly the prompt is followed")]
ModelId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
SchedulerName = Literal["ddim", "dpmpp_2m", "euler", "euler_a", "pndm"]
AdapterName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=100),
    Field(description="of those that /v1/models lists of the model"),
]


class Body(BaseModel):
    """A request body of ours: frozen, and a field we do not know is an error, not silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)  # prompts stay out of logs


def kind_of(value: Any) -> str | None:
    """Tell alternatives apart by their `type`; its brackets keep it out of the names of fields in `explain`."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", "no object")
    return f"<{kind}>" if isinstance(kind, str) else None


class ByType:
    """Tells the members of a union apart, which are tagged `<their type>`.

    BentoML puts what annotates an optional field around it a second time, where a plain discriminator finds no tags.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Discriminate, if that is not done yet."""
        made = handler(source)
        if made["type"] == "tagged-union":
            return made
        return Discriminator(kind_of).__get_pydantic_core_schema__(source, cast("GetCoreSchemaHandler", lambda _: made))


BY_TYPE: Final = ByType()


class GenerationRequest(Body):
    """What every request for a generation has."""

    model: ModelId | None = None
    seed: Seed | None = None


class AdaptedRequest(GenerationRequest):
    """What every request has to a model that an adapter may be added to, besides."""

    adapter: AdapterName | None = None


class MediaRequest(GenerationRequest):
    """What every request for a file has, besides."""

    deterministic: Annotated[bool, Field(description="shares no forward: a replay gives the same bytes")] | None = None
    prompt_in_metadata: Annotated[bool, Field(description="lets files say what was asked for")] | None = None


Job = TypeVar("Job", bound=GenerationRequest)


def complete(job: type[Job], request: GenerationRequest, defaults: Mapping[str, Any]) -> Job:
    """Fill what the caller left out with the model's defaults; a job is a request in which nothing is left out."""
    given = {
        name: value for name, value in request.model_dump().items() if value is not None
    }  # a null deeper down stays
    return job.model_validate({**defaults, **given})


Unit = Literal[
    "tokens",  # those of prompt and completion
    "prompt_tokens",
    "cached_tokens",  # of the prompt
    "completion_tokens",
    "pixel_steps",  # pixels, times the passes of the network that worked on them
    "audio_seconds",
    "frames",
    "meshes",
]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
MAX_RECEIPTS: Final = 500  # in a batch


class Receipt(Body):
    """What a worker made of a request, streamed or not, and however it ended."""

    id: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
    """Drawn by the worker: the same receipt sent twice counts once. Callers may choose their request's id."""
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    attempt: Annotated[int, Field(ge=1, le=MAX_ATTEMPT)] = 1
    modality: Annotated[str, StringConstraints(min_length=1, max_length=16)]
    model: Annotated[str, StringConstraints(max_length=200)]
    units: dict[Unit, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    """None of a unit where it is not named."""
    iterations: Annotated[int, Field(ge=0)]
    queue_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    run_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    ending: Literal["complete", "left", "failed", "late"]


class ReceiptBatch(Body):
    """What workers send to the gateway."""

    receipts: Annotated[tuple[Receipt, ...], Field(max_length=MAX_RECEIPTS)]


NAME = re.compile("[a-z0-9_]+")  # of a field, or its place in a list; pydantic's own words for what it tried are others
MAX_NAME = 100  # characters of a field that there is not, in a message
SHOULD = re.compile(r"^[A-Z][a-z]+ should")
SENTENCES: Final = {  # what pydantic says in words that only Python programmers know
    "missing": "is required",
    "extra_forbidden": "there is no such parameter here",
    "none_required": "there is no such parameter here",
    "json_invalid": "must be JSON",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "union_tag_not_found": "needs a 'type'",
    "string_type": "must be a string",
    "string_unicode": "must be text; it holds bytes that are not UTF-8",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
}


def explain(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """Turn one of pydantic's errors into a sentence and the field it names, if it names one.

    Args:
        error: its type, place and message; BentoML hands on no more than these.
    """
    *path, last = map(str, error["loc"] or ("",))
    names = [part for part in path if NAME.fullmatch(part)]
    if NAME.fullmatch(last) or error["type"] == "extra_forbidden":  # which is as the caller has called it
        names.append(last[:MAX_NAME])
    field = ".".join(names) or None
    if error["type"] == "union_tag_invalid":
        tags = str(error["msg"]).rpartition(": ")[2]
        return f"{field}: must have a 'type' among {re.sub('[<>]', '', tags)}", field
    said = str(error["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    if error["type"] == "literal_error":
        said = said.replace("True", "true").replace("False", "false")
    message = SENTENCES.get(error["type"]) or SHOULD.sub("must", said)
    if field is not None:
        return f"{field}: {message}", field
    return f"the body {message}" if message.startswith("must") else message, None


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
