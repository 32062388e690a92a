"""OpenAI's route that says where a file comes from: by what the file says itself."""

import asyncio
import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from gateway.provenance.containers import format_of
from gateway.provenance.statement import Statement, statement_of
from gateway.routes.generate import refuse_repeated

router = APIRouter(tags=["provenance"])

FORM = "multipart/form-data"
MAX_FIELD_BYTES = 64_000
FORMATS = "PNG, JPEG, WebP, GIF, WAV, MP3, AAC, Opus, FLAC, MP4, GLB, PLY or OBJ"
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary", "description": FORMATS}},
                "required": ["file"],
            }
        }
    },
}
Outcome = Literal["detected", "not_detected"]


class Metadata(BaseModel):
    """Whether the file says in its metadata that a worker made it. Nothing is signed: anybody can write it."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    type: Literal["metadata"] = "metadata"
    outcome: Outcome
    issuer: str | None = None
    model: str | None = None
    revision: str | None = None
    """Of the model's weights."""
    seed: int | None = None
    """That makes the same file again."""
    parameters: dict[str, Any] | None = None
    generated_at: None = None
    """Never there: a replay gives the same bytes."""


class C2pa(BaseModel):
    """OpenAI's manifests are not looked for here."""

    type: Literal["c2pa"] = "c2pa"
    outcome: Outcome = "not_detected"
    validation_state: Literal["not_present"] = "not_present"
    issuer: None = None
    model: None = None
    generated_at: None = None


class SynthId(BaseModel):
    """Nor are its watermarks."""

    type: Literal["synthid"] = "synthid"
    outcome: Outcome = "not_detected"
    model: None = None
    generated_at: None = None


class ProvenanceCheck(BaseModel):
    """What a file says about where it comes from."""

    object: Literal["content_provenance_check"] = "content_provenance_check"
    created_at: int
    results: list[Metadata | C2pa | SynthId] = Field(description="metadata first; the others as OpenAI has them")


@router.post("/v1/content_provenance_checks", openapi_extra={"requestBody": BODY})
async def check(request: Request) -> ProvenanceCheck:
    """Say which model, revision, seed and parameters made a file, as far as the file says so itself."""
    return await asyncio.to_thread(answer, await read_file(request))


def answer(data: bytes) -> ProvenanceCheck:
    """Look at a file.

    Raises:
        RequestValidationError: it is of no format that is known here.
    """
    form = format_of(data)
    if form is None:
        raise unfit(f"must be {FORMATS}")
    results: list[Metadata | C2pa | SynthId] = [told(statement_of(data, form))]
    results += [C2pa()] if form.kind == "image" else []
    results += [SynthId()] if form.kind in ("image", "audio") else []
    return ProvenanceCheck(created_at=int(time.time()), results=results)


def told(statement: Statement | None) -> Metadata:
    """Show what was found."""
    if statement is None:
        return Metadata(outcome="not_detected")
    return Metadata(outcome="detected", issuer="Atelier", **statement.model_dump())


async def read_file(request: Request) -> bytes:
    """Return what was uploaded.

    Raises:
        RequestValidationError: there is no form, or no file in it.
        HTTPException: the form cannot be read.
    """
    if not request.headers.get("content-type", "").lower().startswith(FORM):
        raise unfit("must be a file; send a multipart form")
    async with request.form(max_files=1, max_part_size=MAX_FIELD_BYTES) as form:
        refuse_repeated("body", form.multi_items())
        for name, value in form.items():
            if name != "file" or not isinstance(value, UploadFile):
                raise unfit("must be a file, and nothing else; give the part a filename")
            return await value.read()
    raise unfit("is required")


def unfit(sentence: str) -> RequestValidationError:
    """What is wrong with the file."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", "file"), "msg": sentence, "input": None}])
