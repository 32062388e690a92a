"""An artefact as an answer: whole, a part of it, or word that the caller has it. Source: RFC 9110, 13 and 14."""

import re
from collections.abc import AsyncGenerator, Mapping

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.artefacts.store import Artefact, Artefacts
from gateway.disposition import attachment
from gateway.errors import RangeNotSatisfiable

RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.IGNORECASE)
EXTENSIONS = {
    "application/json": "json",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/pcm": "pcm",
    "audio/wav": "wav",
    "image/gif": "gif",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "model/gltf-binary": "glb",
    "model/obj": "obj",
    "model/ply": "ply",
    "video/mp4": "mp4",
}


class Download(StreamingResponse):
    """Streams an artefact, or a part of it, and closes it however that ends."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], status_code: int, headers: Mapping[str, str]) -> None:
        """Own `pieces`."""
        super().__init__(pieces, status_code, headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; close."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()


async def download(request: Request, artefacts: Artefacts, artefact: Artefact, title: str) -> Response:
    """Answer a GET or HEAD with `artefact`; FastAPI needs both named: `methods=["GET", "HEAD"]`.

    Args:
        request: whose `Range`, `If-Range` and `If-None-Match` count.
        artefacts: where it is kept.
        artefact: what has been kept.
        title: of the file that a browser saves; any text, and the extension follows from the type.

    Raises:
        RangeNotSatisfiable: the range begins behind the end.
        NoSuchArtefact: it is not there any more.
        ArtefactsUnavailable: the store does not answer, or refuses.
    """
    etag = f'"{artefact.sha256}"'
    headers = {"etag": etag, "accept-ranges": "bytes", "cache-control": "private, no-cache"}
    if is_known(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    headers |= {
        "content-type": artefact.media_type,
        "content-disposition": attachment(title, extension_of(artefact.media_type)),
        "x-content-type-options": "nosniff",
    }
    if request.method == "HEAD":
        await artefacts.check_has(artefact)
        return Response(headers=headers | {"content-length": str(artefact.num_bytes)})
    whole = range(artefact.num_bytes)
    part = part_of(request.headers.get("range", ""), whole)
    if part is None or request.headers.get("if-range", etag) != etag:
        pieces = await artefacts.read(artefact, whole)
        return Download(pieces, 200, headers | {"content-length": str(len(whole))})
    pieces = await artefacts.read(artefact, part)
    headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(whole)}"
    return Download(pieces, 206, headers | {"content-length": str(len(part))})


def part_of(asked: str, whole: range) -> range | None:
    """Return which bytes a `Range` header asks for; None: all, as it asks for several parts, or is none at all.

    Raises:
        RangeNotSatisfiable: there are no such.
    """
    found = RANGE.fullmatch(asked)
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        part = whole[max(len(whole) - int(last), 0) :]
    elif last and int(last) < int(first):
        return None
    else:
        part = whole[int(first) : int(last) + 1 if last else None]
    if not part:
        raise RangeNotSatisfiable(len(whole))
    return part


def is_known(if_none_match: str, etag: str) -> bool:
    """Whether an `If-None-Match` header names what is kept."""
    return if_none_match.strip() == "*" or etag in [one.strip().removeprefix("W/") for one in if_none_match.split(",")]


def extension_of(media_type: str) -> str:
    """The extension of files of this type."""
    return EXTENSIONS.get(media_type, "bin")
