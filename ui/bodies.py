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
FILES = {"image": "image", "video": "input_reference"}  # the field of a form that takes the picture


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
    if picture is None:
        return {"json": dict(fields)}
    if task == "mesh":
        return {"json": {**fields, "image": b64encode(picture.content).decode()}}
    file = (picture.name, picture.content, picture.media_type)
    return {"data": {name: str(value) for name, value in fields.items()}, "files": {FILES[task]: file}}
