"""What an answer's body is made of: a generation's outputs in, bytes in the shape the caller asked for out."""

import base64
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from services.engine.events import Done, Event, Preview, Progress, Queued, Started
from services.engine.outputs import Mesh
from services.errors import ServiceError
from services.media import animation, glb, jpeg, mp4, obj, ply, turntable
from services.provenance import Provenance
from services.schema import envelope


class Encoder(Protocol):
    """Takes outputs as they come. One that `streams` gives bytes on the way, the others only when it is closed."""

    media_type: str
    streams: bool

    def add(self, data: Any) -> bytes:
        """Take an output; return what can leave already."""

    def close(self, done: Done) -> bytes:
        """Return the rest."""

    def abort(self) -> None:
        """Free what is held, whether or not it was closed; may be called twice."""


class EventStream(ABC):
    """An encoder whose answer consists of server-sent events: an error is one of them."""

    media_type, streams = "text/event-stream", True

    @abstractmethod
    def tell(self, event: Event | ServiceError) -> bytes:
        """Encode what is no output, as far as it is told."""

    @abstractmethod
    def add(self, data: Any) -> bytes:
        """Take an output; return what can leave already."""

    @abstractmethod
    def close(self, done: Done) -> bytes:
        """Return the rest."""

    def rest(self, done: Done) -> Iterator[bytes]:
        """Yield the rest piece by piece, where it may be too much for one."""
        yield self.close(done)

    @abstractmethod
    def abort(self) -> None:
        """Free what is held."""


Reshape = Callable[[Mesh], Mesh]


def as_it_is(mesh: Mesh) -> Mesh:
    """Return a mesh."""
    return mesh


class MeshEncoder(ABC):
    """One mesh with vertex colours, as a file that says where it comes from."""

    media_type: str
    streams = False

    def __init__(self, provenance: Provenance | None = None, reshape: Reshape = as_it_is) -> None:
        """Write what `reshape` makes of the mesh, and `provenance`; None: nothing."""
        self._provenance = provenance
        self._comment = "" if provenance is None else provenance.line
        self._reshape = reshape

    def add(self, data: Mesh) -> bytes:
        """Take the mesh.

        Raises:
            ServiceError: it cannot be reshaped.
        """
        return self.encode(self._reshape(data))

    @abstractmethod
    def encode(self, mesh: Mesh) -> bytes:
        """Return the file."""

    def close(self, done: Done) -> bytes:
        """Return nothing: the mesh is whole."""
        return b""

    def abort(self) -> None:  # noqa: B027 - not abstract: none of them holds anything
        """Hold nothing."""


class ObjEncoder(MeshEncoder):
    """One mesh, as Wavefront OBJ."""

    media_type = "model/obj"

    def encode(self, mesh: Mesh) -> bytes:
        """Return the file."""
        return obj.encode(mesh.vertices, mesh.faces, mesh.colours, self._comment)


class GlbEncoder(MeshEncoder):
    """One mesh, as binary glTF."""

    media_type = "model/gltf-binary"

    def encode(self, mesh: Mesh) -> bytes:
        """Return the file."""
        extras = {} if self._provenance is None else self._provenance.extras
        return glb.encode(mesh.vertices, mesh.faces, mesh.colours, extras)


class PlyEncoder(MeshEncoder):
    """One mesh, as binary PLY."""

    media_type = "model/ply"

    def encode(self, mesh: Mesh) -> bytes:
        """Return the file."""
        return ply.encode(mesh.vertices, mesh.faces, mesh.colours, self._comment)


class TurntableEncoder(MeshEncoder):
    """One mesh that turns, as GIF."""

    media_type = "image/gif"

    def encode(self, mesh: Mesh) -> bytes:
        """Return the file."""
        return turntable.encode(mesh.vertices, mesh.faces, mesh.colours, self._comment)


class Mp4Encoder:
    """A film, as fragmented MP4 that plays while it arrives.

    The codec must not be freed while a thread is in it, and a caller may leave at any time: hence the lock.
    """

    media_type, streams = "video/mp4", True

    def __init__(self, frame_rate: int, provenance: Provenance | None = None) -> None:
        """Expect frames of one size."""
        self._encoder = mp4.Encoder(frame_rate, comment="" if provenance is None else provenance.line)
        self._lock = threading.Lock()

    def add(self, data: Any) -> bytes:
        """Take a frame, uint8 of shape (height, width, 3)."""
        with self._lock:
            return self._encoder.add(data)

    def close(self, done: Done) -> bytes:
        """Return the rest."""
        with self._lock:
            return self._encoder.close()

    def abort(self) -> None:
        """Free the codec, as soon as no thread is in it."""
        with self._lock:
            self._encoder.abort()


class GifEncoder:
    """A film, as GIF that is seen while it arrives."""

    media_type, streams = "image/gif", True

    def __init__(self, frame_rate: int, provenance: Provenance | None = None) -> None:
        """Expect frames of one size."""
        self._gif = animation.Gif(frame_rate, "" if provenance is None else provenance.line)

    def add(self, data: Any) -> bytes:
        """Take a frame, uint8 of shape (height, width, 3)."""
        return self._gif.add(data)

    def close(self, done: Done) -> bytes:
        """Return the end."""
        return self._gif.close()

    def abort(self) -> None:
        """Hold nothing."""


class WebpEncoder:
    """A film, as animated WebP, whose head says how long it is: nothing leaves before the end."""

    media_type, streams = "image/webp", False

    def __init__(self, frame_rate: int, provenance: Provenance | None = None) -> None:
        """Expect frames of one size."""
        said = ("", b"") if provenance is None else (provenance.line, provenance.xmp)
        self._webp = animation.Webp(frame_rate, *said)
        self._pieces: list[bytes] = []

    def add(self, data: Any) -> bytes:
        """Take a frame, uint8 of shape (height, width, 3)."""
        self._pieces.append(self._webp.add(data))
        return b""

    def close(self, done: Done) -> bytes:
        """Return the film."""
        self._pieces.append(self._webp.close())
        film = b"".join(self._pieces)
        return animation.sized(film, len(film))

    def abort(self) -> None:
        """Forget what was not taken."""
        self._pieces.clear()


class Base64Encoder:
    """Another encoder's bytes in JSON, in the shape of OpenAI's images API."""

    media_type, streams = "application/json", False

    def __init__(self, inner: Encoder, output_format: str) -> None:
        """Wrap `inner`, whose bytes are `output_format`."""
        self._inner = inner
        self._format = output_format
        self._data = b""

    def add(self, data: Any) -> bytes:
        """Collect."""
        self._data += self._inner.add(data)
        return b""

    def close(self, done: Done) -> bytes:
        """Return the document."""
        encoded = text_of(self._data + self._inner.close(done))
        document = {
            "created": int(time.time()),
            "data": [{"b64_json": encoded}],
            "output_format": self._format,
            "usage": dict(done.usage),
        }
        return json.dumps(document).encode()

    def abort(self) -> None:
        """Free what the inner encoder holds."""
        self._inner.abort()


class Telling(EventStream):
    """Server-sent events that say how it goes on."""

    def tell(self, event: Event | ServiceError) -> bytes:
        """Encode what is no output: `queued`, `started`, `progress`, `preview`, `error`."""
        match event:
            case Queued(position):
                return server_sent("queued", position=position)
            case Started():
                return server_sent("started")
            case Progress(step, steps, eta):
                return server_sent(
                    "progress", step=step, steps=steps, eta_seconds=None if eta is None else round(eta, 3)
                )
            case Preview(step, picture):
                return server_sent("preview", step=step, media_type="image/jpeg", b64=text_of(jpeg.encode(picture)))
            case ServiceError():
                error = envelope(event.status, event.message, event.code, event.param).error
                return server_sent("error", **error.model_dump(), status=event.status)
        raise TypeError(event)

    def close(self, done: Done) -> bytes:
        """Return `done`."""
        return server_sent("done", finish_reason=done.finish_reason, usage=dict(done.usage))


class EventEncoder(Telling):
    """Server-sent events around another encoder: how it goes on, and its bytes in base64 as they are made."""

    def __init__(self, inner: Encoder) -> None:
        """Wrap `inner`."""
        self._inner = inner

    def add(self, data: Any) -> bytes:
        """Take an output."""
        return self._output(self._inner.add(data))

    def close(self, done: Done) -> bytes:
        """Return the rest, and `done`."""
        return self._output(self._inner.close(done)) + super().close(done)

    def abort(self) -> None:
        """Free what the inner encoder holds."""
        self._inner.abort()

    def _output(self, data: bytes) -> bytes:
        return server_sent("output", media_type=self._inner.media_type, b64=text_of(data)) if data else b""


def server_sent(name: str, **data: Any) -> bytes:
    """Encode an event of the text/event-stream format."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def text_of(data: bytes) -> str:
    """Encode bytes for JSON."""
    return base64.b64encode(data).decode()
