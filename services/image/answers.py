"""Pictures in the shapes of OpenAI's images API: a document with all, or events with sketches of one on its way."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.encoders import EventStream, server_sent, text_of
from services.engine.events import Done, Event, Preview, Progress
from services.errors import ServiceError
from services.finals import File
from services.image.schema import ImageJob, OutputFormat, described, seed_of, usage
from services.media import jpeg, picture, png, webp
from services.provenance import Provenance
from services.schema import envelope
from services.settings import Settings

BEST = 100
END = b"data: [DONE]\n\n"


def written(pixels: NDArray[np.uint8], form: OutputFormat, quality: int, provenance: Provenance) -> bytes:
    """Write a picture of shape (height, width, 3) as a file that says where it comes from."""
    if form == "png":
        return png.encode(pixels, provenance.tags, provenance.xmp)
    encode = jpeg.encode if form == "jpeg" else webp.encode
    return encode(pixels, quality, provenance.line, provenance.xmp)


def converted(data: bytes, form: OutputFormat, provenance: Provenance, settings: Settings) -> bytes:
    """Write a picture that is a file already as one of another format.

    Raises:
        ValueError: it cannot be read.
    """
    return written(np.asarray(picture.read(data, settings.max_image_pixels)), form, BEST, provenance)


class PictureEncoder:
    """Pictures one after the other, uint8 of shape (height, width, 3), each as a file that says where it comes from."""

    streams = False

    def __init__(self, job: ImageJob, provenance: Provenance) -> None:
        """Encode what comes of `job`; `provenance` is the first picture's."""
        self._format = job.output_format or "png"
        self._quality = BEST if job.output_compression is None else job.output_compression
        self._provenance = provenance
        self._number = 0
        self.media_type = f"image/{self._format}"

    @property
    def seed(self) -> int:
        """Of the next picture."""
        return seed_of(self._provenance.seed, self._number)

    def add(self, data: NDArray[np.uint8]) -> bytes:
        """Take the next picture."""
        file = self.sketch(data)
        self._number += 1
        return file

    def sketch(self, data: NDArray[np.uint8]) -> bytes:
        """Encode what is only on its way to be the next picture."""
        provenance = replace(self._provenance, seed=self.seed)
        return written(data, self._format, self._quality, provenance)

    def close(self, done: Done) -> bytes:
        """Return nothing: each picture is whole."""
        return b""

    def abort(self) -> None:
        """Hold nothing."""


class DocumentEncoder:
    """All pictures in base64, each with its seed."""

    media_type, streams = "application/json", False

    def __init__(self, inner: PictureEncoder, job: ImageJob) -> None:
        """Collect what `inner` encodes for `job`."""
        self._inner = inner
        self._job = job
        self._pictures: list[dict[str, Any]] = []

    def add(self, data: NDArray[np.uint8]) -> bytes:
        """Take the next picture."""
        seed = self._inner.seed
        self._pictures.append({"b64_json": text_of(self._inner.add(data)), "seed": seed})
        return b""

    def close(self, done: Done) -> bytes:
        """Return the document."""
        document = {
            "created": int(time.time()),
            "data": self._pictures,
            **described(self._job.size, self._job.output_format),
            "usage": usage(done.usage),
        }
        return json.dumps(document).encode()

    def abort(self) -> None:
        """Hold nothing."""


class PictureFiles:
    """Each picture as a file: `image`, then `image-2` and so on."""

    def __init__(self, inner: PictureEncoder) -> None:
        """Keep what `inner` encodes."""
        self._inner = inner
        self._pictures: list[bytes] = []

    def add(self, data: NDArray[np.uint8]) -> None:
        """Take the next picture."""
        self._pictures.append(self._inner.add(data))

    def close(self, done: Done) -> Iterator[File]:
        """Yield them."""
        for number, content in enumerate(self._pictures, start=1):
            yield File("image" if number == 1 else f"image-{number}", self._inner.media_type, [content])

    def abort(self) -> None:
        """Forget them."""
        self._pictures.clear()


class PictureEvents(EventStream):
    """`partial_image` for each sketch, `completed`, and `[DONE]`; or an error, and without it."""

    def __init__(self, inner: PictureEncoder, job: ImageJob, prefix: str) -> None:
        """Stream what `inner` encodes for `job`; `prefix` is that of the events' names."""
        self._inner = inner
        self._job = job
        self._prefix = prefix
        self._num_sketches = 0
        self._seed = inner.seed
        self._picture = b""

    def tell(self, event: Event | ServiceError) -> bytes:
        """Tell of sketches and errors; and, once something has been told, by a comment that it goes on."""
        match event:
            case Preview(_, picture):
                number = self._num_sketches
                self._num_sketches += 1
                return self._event("partial_image", self._inner.sketch(picture), partial_image_index=number)
            case Progress(step, steps) if self._num_sketches:
                return b": %d/%d\n\n" % (step, steps)
            case ServiceError():
                error = envelope(event.status, event.message, event.code, event.param)
                return b"data: " + error.model_dump_json().encode() + b"\n\n"
        return b""

    def add(self, data: NDArray[np.uint8]) -> bytes:
        """Take the picture; it leaves when all is counted."""
        self._picture = self._inner.add(data)
        return b""

    def close(self, done: Done) -> bytes:
        """Return the picture and the end."""
        told = {"seed": self._seed, "usage": usage(done.usage)}
        return self._event("completed", self._picture, **told) + END

    def abort(self) -> None:
        """Hold nothing."""

    def _event(self, name: str, picture: bytes, **more: Any) -> bytes:
        kind = f"{self._prefix}.{name}"
        head = {"type": kind, "b64_json": text_of(picture), "created_at": int(time.time())}
        return server_sent(kind, **head, **described(self._job.size, self._job.output_format), quality="auto", **more)
