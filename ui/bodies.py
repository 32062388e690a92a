"""What the gateway's routes are sent to have something made; knows no widget and no connection."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
ROUTES = {
    "image": "/v1/images/generations",
    "audio": "/v1/audio/speech",
    "video": "/v1/videos",
    "mesh": "/v1/3d/generations",
}
EDITS = "/v1/images/edits"


@dataclass(frozen=True)
class Picture:
    """An image that somebody attached, or that was made before."""

    name: str
    media_type: str
    content: bytes = field(repr=False)


def route_of(task: str, picture: Picture | None) -> str:
    """Return the route that makes it, of a picture or of words."""
    return EDITS if task == "image" and picture else ROUTES[task]


def wrapped(task: str, fields: Mapping[str, Any], picture: Picture | None) -> dict[str, Any]:
    """Return the body as httpx takes it: JSON, or a form where there is a file in it."""
    if task == "video":  # always a form: the fields of a job come back as those of one
        parts = {name: (None, str(value)) for name, value in fields.items()}
        return {"files": {**parts, **({} if picture is None else {"input_reference": file_of(picture)})}}
    if picture is None:
        return {"json": dict(fields)}
    if task == "mesh":
        return {"json": {**fields, "image": b64encode(picture.content).decode()}}
    return {"data": {name: str(value) for name, value in fields.items()}, "files": {"image": file_of(picture)}}


def file_of(picture: Picture) -> tuple[str, bytes, str]:
    """A picture as part of a form."""
    return picture.name, picture.content, picture.media_type
