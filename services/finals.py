"""Whole files of a generation: outputs in, and once they are all there, files that are finished; for jobs.

Who asks with `Accept: text/event-stream; final=1` gets, before `done`, for each file `output` events (`variant`,
`media_type`, `b64`: pieces of at most `PIECE` bytes, decoded one by one and put together in order), and then
a `file` event (`variant`, `media_type`, `bytes`, `sha256`). What can be heard before comes twice: at once as `sound`
events (`media_type`, `b64`), which are the beginning of the file but for the lengths in its head.
"""

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from services.encoders import Encoder, Reshape, Telling, as_it_is, server_sent, text_of
from services.engine.events import Done
from services.engine.outputs import Mesh, Sound
from services.media import animation, glb, jpeg, mp4, obj, ply, turntable
from services.media.spritesheet import Spritesheet
from services.provenance import Provenance
from services.schema import MEDIA_TYPES

PIECE = 192 * 1024  # bytes, and so 256 KiB as text
THUMBNAIL_SIDE = 640  # pixels


@dataclass(frozen=True)
class File:
    """A file that is finished."""

    variant: str
    media_type: str
    pieces: Iterable[bytes]


class Files(Protocol):
    """Takes outputs as they come; one thread at a time is in it."""

    def add(self, data: Any) -> tuple[str, bytes] | None:
        """Take an output; return the media type and the bytes of what can be heard already, if there is such."""

    def close(self, done: Done) -> Iterator[File]:
        """Yield the files, each to be read before the next."""

    def abort(self) -> None:
        """Free what is held, whether or not it was closed; may be called twice."""


class FinalEvents(Telling):
    """Server-sent events: how it goes on, and at the end the files."""

    def __init__(self, files: Files) -> None:
        """Send `files`, and own it."""
        self._files = files
        self._lock = threading.Lock()  # a codec must not be freed while a thread is in it
        self._is_over = False

    def add(self, data: Any) -> bytes:
        """Take an output."""
        with self._lock:
            heard = None if self._is_over else self._files.add(data)
        return b"" if heard is None else server_sent("sound", media_type=heard[0], b64=text_of(heard[1]))

    def rest(self, done: Done) -> Iterator[bytes]:
        """Yield the files, and `done`."""
        events = self._events(done)
        while True:
            with self._lock:
                event = None if self._is_over else next(events, None)
            if event is None:
                return
            yield event

    def abort(self) -> None:
        """Free what is held, as soon as no thread is in it."""
        with self._lock:
            self._is_over = True
            self._files.abort()

    def _events(self, done: Done) -> Iterator[bytes]:
        for file in self._files.close(done):
            named = {"variant": file.variant, "media_type": file.media_type}
            checksum, num_bytes = sha256(), 0
            for piece in cut(file.pieces):
                checksum.update(piece)
                num_bytes += len(piece)
                yield server_sent("output", **named, b64=text_of(piece))
            yield server_sent("file", **named, bytes=num_bytes, sha256=checksum.hexdigest())
        yield self.close(done)


class OneFile:
    """What another encoder makes of all outputs, as the only file."""

    def __init__(self, variant: str, encoder: Encoder) -> None:
        """Name the file `variant`."""
        self._variant = variant
        self._encoder = encoder
        self._pieces: list[bytes] = []

    def add(self, data: Any) -> None:
        """Take an output."""
        self._pieces.append(self._encoder.add(data))

    def close(self, done: Done) -> Iterator[File]:
        """Yield the file."""
        yield File(self._variant, self._encoder.media_type, [*self._pieces, self._encoder.close(done)])

    def abort(self) -> None:
        """Free what the encoder holds."""
        self._encoder.abort()


class FilmFiles:
    """A film, its first frame, and its frames on one picture. What it holds does not grow with the film."""

    def __init__(
        self,
        frame_rate: int,
        num_frames: int,
        provenance: Provenance | None = None,
        output_format: Literal["mp4", "gif", "webp"] = "mp4",
    ) -> None:
        """Expect `num_frames` of one size; `provenance` goes into all files."""
        self._file = Scratch()
        self._line, self._xmp = ("", b"") if provenance is None else (provenance.line, provenance.xmp)
        self._media_type = MEDIA_TYPES[output_format]
        match output_format:
            case "mp4":
                film: Film = mp4.FileEncoder(self._file.path, frame_rate, comment=self._line)
            case "gif":
                film = Frames(animation.Gif(frame_rate, self._line), self._file)
            case "webp":
                film = Frames(animation.Webp(frame_rate, self._line, self._xmp), self._file)
        self._film = film
        self._sheet = Spritesheet(num_frames)
        self._thumbnail = b""

    def add(self, data: Any) -> None:
        """Take a frame, uint8 of shape (height, width, 3)."""
        self._film.add(data)
        self._sheet.add(data)
        self._thumbnail = self._thumbnail or thumbnail(data, self._line, self._xmp)

    def close(self, done: Done) -> Iterator[File]:
        """Yield them."""
        self._film.close()
        yield File("video", self._media_type, self._pieces())
        yield File("thumbnail", "image/jpeg", [self._thumbnail])
        yield File("spritesheet", "image/jpeg", [self._sheet.close(self._line, self._xmp)])

    def abort(self) -> None:
        """Free the codec and the disk."""
        self._film.abort()
        self._file.close()

    def _pieces(self) -> Iterator[bytes]:
        for number, piece in enumerate(self._file.pieces()):
            is_unsized = number == 0 and self._media_type == MEDIA_TYPES["webp"]
            yield animation.sized(piece, self._file.num_bytes) if is_unsized else piece


class Film(Protocol):
    """Frames on their way into a file."""

    def add(self, frame: Any) -> None:
        """Take a frame."""

    def close(self) -> None:
        """Finish the file."""

    def abort(self) -> None:
        """Free what is held; any number of times."""


class Frames:
    """An animation on its way into a file."""

    def __init__(self, animation: animation.Gif | animation.Webp, file: "Scratch") -> None:
        """Write what `animation` makes into `file`."""
        self._animation = animation
        self._file = file

    def add(self, frame: Any) -> None:
        """Take a frame."""
        self._file.write(self._animation.add(frame))

    def close(self) -> None:
        """Write the end."""
        self._file.write(self._animation.close())

    def abort(self) -> None:
        """Hold nothing."""


class MeshFiles:
    """One mesh in every format that we have, and a GIF in which it turns."""

    def __init__(
        self,
        provenance: Provenance | None = None,
        reshape: Reshape = as_it_is,
        num_points: int = ply.NUM_POINTS,
    ) -> None:
        """Expect one mesh, of which `reshape` makes what is written; `provenance` goes into all files."""
        self._reshape = reshape
        self._line, self._extras = ("", {}) if provenance is None else (provenance.line, provenance.extras)
        self._num_points = num_points
        self._mesh: Mesh | None = None

    def add(self, data: Mesh) -> None:
        """Take the mesh.

        Raises:
            ServiceError: it cannot be reshaped.
        """
        self._mesh = self._reshape(data)

    def close(self, done: Done) -> Iterator[File]:
        """Yield them, each made when it is asked for."""
        if self._mesh is None:
            return
        mesh = self._mesh.vertices, self._mesh.faces, self._mesh.colours
        yield File("glb", "model/gltf-binary", [glb.encode(*mesh, self._extras)])
        yield File("obj", "model/obj", [obj.encode(*mesh, self._line)])
        yield File("ply", "model/ply", [ply.encode(*mesh, self._line)])
        yield File("points", "model/ply", [ply.encode_points(*mesh, self._num_points, self._line)])
        yield File("preview", "image/gif", [turntable.encode(*mesh, self._line)])

    def abort(self) -> None:
        """Forget the mesh."""
        self._mesh = None


class Finishing(Encoder, Protocol):
    """An encoder whose file's head is whole only at its end."""

    def finished(self, start: bytes, num_bytes: int) -> bytes:
        """Return the beginning of the whole file, of which `start` is the first bytes."""


class SoundFiles:
    """Sound as the file that another encoder streams, with its length in its head. It does not grow in memory."""

    def __init__(self, encoder: Finishing) -> None:
        """Keep what `encoder` makes."""
        self._encoder = encoder
        self._file = Scratch()

    def add(self, data: Sound) -> tuple[str, bytes]:
        """Take the next sound."""
        piece = self._encoder.add(data)
        self._file.write(piece)
        return self._encoder.media_type, piece

    def close(self, done: Done) -> Iterator[File]:
        """Yield the sound, if there was any."""
        self._file.write(self._encoder.close(done))
        if self._file.num_bytes:
            yield File("audio", self._encoder.media_type, self._pieces())

    def abort(self) -> None:
        """Free the codec and the disk."""
        self._encoder.abort()
        self._file.close()

    def _pieces(self) -> Iterator[bytes]:
        for number, piece in enumerate(self._file.pieces()):
            yield self._encoder.finished(piece, self._file.num_bytes) if number == 0 else piece


class Scratch:
    """A file without a name, which goes with its process; it lies in `TMPDIR`."""

    def __init__(self) -> None:
        """Make an empty one."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever makes it closes it
        self.path = Path(f"/proc/self/fd/{self._file.fileno()}")
        """By which a library of this process can open it."""

    def write(self, piece: bytes) -> None:
        """Add to its end."""
        self._file.write(piece)

    @property
    def num_bytes(self) -> int:
        """That are in it."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    def pieces(self) -> Iterator[bytes]:
        """Yield what is in it."""
        self._file.seek(0)
        while piece := self._file.read(PIECE):
            yield piece

    def close(self) -> None:
        """Delete it; any number of times."""
        self._file.close()


def cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut and join so that all pieces have `PIECE` bytes, but for the last."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    if waiting:
        yield bytes(waiting)


def thumbnail(frame: Any, description: str = "", xmp: bytes = b"") -> bytes:
    """Return a frame as a small JPEG, with words about it."""
    picture = Image.fromarray(frame)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return jpeg.encode(np.asarray(picture), jpeg.QUALITY, description, xmp)
