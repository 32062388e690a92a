"""What a file's texts say about who made it, as our workers write it; trusts nothing: anybody can write the same."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from xml.sax.saxutils import unescape

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.provenance.containers import XMP, Format
from services.schema import MAX_SEED

MARK = "AI-generated"  # as `services/provenance.py` writes it
LINE = f"{MARK}: "
NAMES = ("model", "revision", "seed", "parameters")
QUOTES = {"&quot;": '"', "&apos;": "'", "&#10;": "\n", "&#13;": "\r", "&#9;": "\t"}
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Statement(BaseModel):
    """What a file says."""

    model_config = ConfigDict(frozen=True)

    model: Name
    revision: Name
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    parameters: Mapping[str, Any]


def statement_of(data: bytes, form: Format) -> Statement | None:
    """Read what a file says about itself; None: nothing that is one of ours."""
    tags: dict[str, str] = {}
    for name, text in form.texts(data):
        found = None
        if text.startswith(LINE):
            found = from_line(text.removeprefix(LINE))
        elif name == XMP:
            found = from_tags(dict(attributes(text)))
        elif name == "gltf":
            found = from_document(text)
        if found is not None:
            return found
        tags.setdefault(name, text)
    return from_tags(tags) if tags.get("comment") == MARK else None


def from_line(text: str) -> Statement | None:
    """Read the form for one line: everything in one object."""
    said = read(text)
    if not isinstance(said, dict):
        return None
    others = {name: value for name, value in said.items() if name not in NAMES}
    return checked({**said, "parameters": others})


def from_tags(tags: Mapping[str, str]) -> Statement | None:
    """Read the form for tags: texts by name."""
    seed = tags.get("seed", "")
    if not (seed.isascii() and seed.isdecimal() and len(seed) <= len(str(MAX_SEED))):
        return None
    return checked({**tags, "seed": int(seed), "parameters": read(tags.get("parameters", ""))})


def attributes(packet: str) -> Iterator[tuple[str, str]]:
    """Yield our attributes in an XMP packet: each is looked for once, so that none is a nuisance."""
    for name in NAMES:
        _, _, rest = packet.partition(f" atelier:{name.capitalize()}=")
        value, mark, _ = rest[1:].partition(rest[:1] or "\0")
        if mark in ("'", '"'):
            yield name, unescape(value, QUOTES)


def from_document(text: str) -> Statement | None:
    """Read the asset of a glTF document."""
    found: Any = read(text)
    for name in ("asset", "extras"):
        found = found.get(name) if isinstance(found, dict) else None
    return checked(found) if isinstance(found, dict) and found.get("comment") == MARK else None


def checked(said: Mapping[str, Any]) -> Statement | None:
    """Return what is as our workers write it."""
    try:
        return Statement.model_validate({name: said.get(name) for name in NAMES}, strict=True)
    except ValidationError:
        return None


def read(text: str) -> Any:
    """Read JSON; None: it is none."""
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError:
        return None
