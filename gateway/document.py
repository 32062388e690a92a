"""What the OpenAPI document says of bodies that we read ourselves, and of errors; knows no route's work."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from services.schema import ErrorEnvelope

REFERENCE = "#/components/schemas/{model}"
GENERATIONS = ("/generate/", "/v1/chat/", "/v1/completions", "/v1/responses", "/v1/images/", "/v1/audio/speech")
JOBS = ("/v1/jobs", "/v1/videos", "/v1/3d")
NAMED: dict[str, Any] = {  # a picture, as OpenAI's JSON bodies have it
    "type": "object",
    "properties": {"image_url": {"type": "string", "description": "a data URL, or a link where they are followed"}},
    "required": ["image_url"],
}
WORDS = {
    404: "There is no such model, job, key, file or place in a list; `code` says which.",
    409: "It is not in a state for this, or the `Idempotency-Key` stands for another request.",
    413: "The body is too long, or has too many parts.",
    416: "The file has no such part.",
    500: "The model, or what converts a file, failed on this request.",
    502: "An outside model server failed.",
    504: "The result was not there within the deadline.",
    507: "There is no room for what would be kept.",
}


def add_errors(path: str, operation: dict[str, Any]) -> None:
    """Document what an operation can be refused with; FastAPI's own 422 goes, as it is a 400 here."""
    responses = operation["responses"]
    responses.pop("422", None)
    schema = {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}
    for status in statuses(path, operation):
        said = {"description": WORDS[status], "content": {"application/json": {"schema": schema}}}
        responses.setdefault(str(status), said)
    if path.endswith("/content"):
        whole = responses["200"]
        responses.setdefault("206", {**whole, "description": "The part that `Range` names."})


def statuses(path: str, operation: Mapping[str, Any]) -> Iterator[int]:
    """Yield what may come besides what may always come."""
    is_generation, is_job = path.startswith(GENERATIONS), path.startswith(JOBS)
    has_body = "requestBody" in operation
    is_paged = any(parameter["name"] == "after" for parameter in operation.get("parameters", ()))
    if "{" in path or has_body or is_generation or is_paged or "/voices" in path:
        yield 404
    if has_body:
        yield 413
    if is_generation:
        yield from (500, 502, 504)
    if is_job or path.startswith("/v1/keys/"):
        yield 409
    if is_job or is_generation:
        yield 507
    if path.endswith("/content"):
        yield from (416, 500, 504)  # of a worker that converts


def takes(contract: type[BaseModel], media_type: str = "application/json", *files: str) -> dict[str, Any]:
    """What `/docs` says about the body; `schemas` are the contracts that it refers to.

    Args:
        contract: of the body, or of what a form has besides its files.
        media_type: of the body.
        files: the names of a form's files.
    """
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{contract.__name__}"}
    if files:
        schema = with_fields(contract, {name: {"type": "string", "format": "binary"} for name in sorted(files)})
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def with_fields(contract: type[BaseModel], fields: Mapping[str, Any], *required: str) -> dict[str, Any]:
    """A contract's schema with more fields; as `allOf` there would be none, as a contract forbids what it has not."""
    schema = contract.model_json_schema(ref_template=REFERENCE)
    schema.pop("$defs", None)  # which `schemas` has
    wanted = [*schema.get("required", ()), *required]
    return {**schema, "properties": {**schema["properties"], **fields}, **({"required": wanted} if wanted else {})}


def schemas(*contracts: type[BaseModel]) -> dict[str, Any]:
    """The contracts, for the OpenAPI document."""
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(contract, "validation") for contract in contracts]
    _, schema = models_json_schema(modes, ref_template=REFERENCE)
    definitions: dict[str, Any] = schema["$defs"]
    return definitions
