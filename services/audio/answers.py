"""Speech as files that are heard while they come, or as OpenAI's events with pieces of such a file."""

import json
import threading
from collections.abc import Mapping
from typing import Any

from services.audio.schema import Format
from services.encoders import Encoder, EventStream, server_sent, text_of
from services.engine.events import Done, Event
from services.engine.outputs import Sound
from services.errors import ServiceError
from services.media import sound, wav
from services.provenance import AI_GENERATED, SOFTWARE, Provenance
from services.schema import MEDIA_TYPES, envelope
from services.settings import Settings

END = b"data: [DONE]\n\n"


class PcmFile:
    """Samples and nothing else."""

    def add(self, samples: Any) -> bytes:
        """Return 16 bits for each sample."""
        return wav.pcm(samples)

    def close(self) -> bytes:
        """Return nothing."""
        return b""


class SpeechEncoder:
    """Sound of one speech, as a file of the format and at the speed that were asked for.

    A codec must not be freed while a thread is in it, and a caller may leave at any time: hence the lock.
    """

    streams = True

    def __init__(self, form: Format, speed: float, provenance: Provenance) -> None:
        """Write `form`, at `speed` times the model's own, with `provenance` in it."""
        self._format: Format = form
        self._speed = speed
        self._provenance = provenance
        self._file: sound.Encoder | wav.Encoder | PcmFile | None = None
        self._is_over = False
        self._lock = threading.Lock()
        self.media_type = MEDIA_TYPES[form]

    def add(self, data: Sound) -> bytes:
        """Take the next of it; the first one's sample rate is the file's."""
        with self._lock:
            if self._is_over:
                raise ValueError("the speech is over")
            if self._file is None:
                self._file = self._open(data.sample_rate)
            samples = data.samples
            if self._speed != 1:  # each sentence by itself: a filter for all would keep its end back until the next
                samples = sound.at_speed(samples, self._speed, data.sample_rate)
            return self._file.add(samples)

    def close(self, done: Done) -> bytes:
        """Return the rest."""
        with self._lock:
            self._is_over = True
            if self._file is None:
                return b""
            return self._file.close()

    def finished(self, start: bytes, num_bytes: int) -> bytes:
        """Return the beginning of the whole file, with its length in it where the format has a place for that.

        Args:
            start: its first bytes, the head among them.
            num_bytes: of the whole file.
        """
        match self._file:
            case wav.Encoder():
                return wav.sized(start, num_bytes)
            case sound.Encoder() if self._format == "flac":
                return sound.counted(start, self._file.num_samples)
        return start

    def abort(self) -> None:
        """Free the codec, as soon as no thread is in it."""
        with self._lock:
            self._is_over = True
            if isinstance(self._file, sound.Encoder):
                self._file.abort()

    def _open(self, sample_rate: int) -> sound.Encoder | wav.Encoder | PcmFile:
        match self._format:
            case "pcm":
                return PcmFile()
            case "wav":
                return wav.Encoder(sample_rate, {"ISFT": SOFTWARE, "ICMT": self._provenance.line})
            case form:
                tags = {name.lower(): text for name, text in self._provenance.tags.items()}
                return sound.Encoder(form, sample_rate, {**tags, "comment": AI_GENERATED})


def converted(data: bytes, form: Format, provenance: Provenance, settings: Settings) -> bytes:
    """Write speech that is a file already as one of another format.

    Raises:
        ValueError: it cannot be read.
    """
    samples, sample_rate = sound.read(data)
    encoder = SpeechEncoder(form, 1.0, provenance)
    try:
        content = encoder.add(Sound(samples, sample_rate)) + encoder.close(Done())
        return encoder.finished(content, len(content))
    finally:
        encoder.abort()


class SpeechEvents(EventStream):
    """`speech.audio.delta` for each piece of the file, then `speech.audio.done` and `[DONE]`, or an error."""

    def __init__(self, inner: Encoder) -> None:
        """Wrap `inner`, whose bytes the pieces are."""
        self._inner = inner

    def tell(self, event: Event | ServiceError) -> bytes:
        """Tell of errors alone."""
        if not isinstance(event, ServiceError):
            return b""
        error = envelope(event.status, event.message, event.code, event.param).model_dump()
        return b"data: " + json.dumps(error).encode() + b"\n\n"

    def add(self, data: Sound) -> bytes:
        """Take the next of it."""
        return self._delta(self._inner.add(data))

    def close(self, done: Done) -> bytes:
        """Return the rest, and the end."""
        rest = self._delta(self._inner.close(done))
        return rest + server_sent("speech.audio.done", type="speech.audio.done", usage=usage(done.usage)) + END

    def abort(self) -> None:
        """Free what the inner encoder holds."""
        self._inner.abort()

    def _delta(self, data: bytes) -> bytes:
        if not data:
            return b""
        return server_sent("speech.audio.delta", type="speech.audio.delta", audio=text_of(data))


def usage(made: Mapping[str, float]) -> dict[str, Any]:
    """Say what was made: seconds of speech as the model made them; OpenAI's names are there, and no tokens."""
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, **made}
