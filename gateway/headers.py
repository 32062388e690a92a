"""Headers as ASGI has them; looked at some ten times a request, for which Starlette's classes take their time."""

from collections.abc import Mapping, MutableMapping
from typing import Any


def header(message: Mapping[str, Any], name: bytes) -> str:
    """Return the first header of this name, in lower case, of a request's scope or an answer; empty where none is."""
    for each, value in message["headers"]:
        if each == name:
            return bytes(value).decode("latin-1")
    return ""


def put_headers(message: MutableMapping[str, Any], *headers: tuple[bytes, bytes]) -> None:
    """Give an answer these headers, instead of others of their names."""
    names = {name for name, _ in headers}
    message["headers"] = [each for each in message["headers"] if each[0] not in names] + list(headers)
