"""MP3, Ogg Opus, FLAC and AAC, written as they are heard, and sound made faster or slower; knows no speaker."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from services.media.sink import Sink

Format = Literal["mp3", "opus", "flac", "aac"]
SILENCE = 8_192  # samples behind a sound, more than `Tempo` loses
NO_TAGS: Mapping[str, str] = MappingProxyType({})
REPEATABLE = {"fflags": "+bitexact"}  # no random serial numbers, no library's version: the same sound, the same bytes


@dataclass(frozen=True)
class Kind:
    """A codec in a container."""

    container: str
    codec: str
    bit_rate: int | None  # of mono speech; None: nothing is lost
    sample_rates: tuple[int, ...]  # ascending; none: any
    options: Mapping[str, str] = field(default_factory=dict)  # of the container


KINDS: Mapping[Format, Kind] = MappingProxyType(
    {
        "mp3": Kind("mp3", "libmp3lame", 64_000, (16_000, 24_000, 32_000, 44_100, 48_000), {"write_xing": "0"}),
        "opus": Kind("ogg", "libopus", 32_000, (16_000, 24_000, 48_000), {"page_duration": "100000"}),
        "flac": Kind("flac", "flac", None, ()),
        "aac": Kind("adts", "aac", 64_000, (16_000, 24_000, 32_000, 44_100, 48_000), {"write_id3v2": "1"}),
    }
)


class Encoder:
    """Turns mono samples into a file's bytes, chunk by chunk; belongs to one thread at a time, whichever that is.

    Args:
        form: of the file.
        sample_rate: samples a second; a codec that does not know it stores a higher one.
        tags: go into the file's head, as the format names them.
    """

    def __init__(self, form: Format, sample_rate: int, tags: Mapping[str, str] = NO_TAGS) -> None:
        kind = KINDS[form]
        self._sink = Sink()
        options = {**REPEATABLE, **kind.options}
        self._container = av.open(self._sink, "w", format=kind.container, options=options)
        self._container.metadata.update(tags)
        stored = next((rate for rate in kind.sample_rates if rate >= sample_rate), sample_rate)
        stream = self._container.add_stream(kind.codec, rate=stored)
        assert isinstance(stream, AudioStream)  # noqa: S101 - as all of these are
        stream.codec_context.layout = "mono"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        if kind.bit_rate is not None:
            stream.codec_context.bit_rate = kind.bit_rate
        self._stream: AudioStream | None = stream
        self._sample_rate = sample_rate
        self._num_samples = 0

    def add(self, samples: NDArray[np.float32]) -> bytes:
        """Return the bytes that are whole with these samples.

        Args:
            samples: shape (n,), in [-1, 1]; clipped outside, and NaN or infinite becomes silence.

        Raises:
            ValueError: the sound is over.
        """
        if self._stream is None:
            raise ValueError("the sound is over")
        if len(samples):
            frame = frame_of(samples, self._sample_rate, self._num_samples)
            self._num_samples += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def close(self) -> bytes:
        """Return the rest, and free the codec.

        Raises:
            ValueError: the sound is over.
        """
        if self._stream is None:
            raise ValueError("the sound is over")
        self._container.mux(self._stream.encode(None))
        self._container.close()
        end = self._sink.take()
        self.abort()
        return end

    @property
    def num_samples(self) -> int:
        """That it has been given."""
        return self._num_samples

    def abort(self) -> None:
        """Free the codec and forget what was not taken yet; any number of times, also after `close`."""
        self._sink.closed = True
        self._container.close()
        self._stream = None
        self._sink.take()


def read(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Return the sound of a file that `Encoder` or `wav.Encoder` has made: mono samples in [-1, 1], and their rate.

    Raises:
        ValueError: it is none, or says not what it is, as bare samples do.
    """
    try:
        with av.open(BytesIO(data), "r") as container:
            rate = container.streams.audio[0].rate
            to_floats = av.AudioResampler(format="flt", layout="mono", rate=rate)
            frames = [part for frame in container.decode(audio=0) for part in to_floats.resample(frame)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError("this is no sound") from error
    return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)]), rate


def at_speed(samples: NDArray[np.float32], speed: float, sample_rate: int) -> NDArray[np.float32]:
    """Return a whole sound made faster or slower, to its very end, of which `Tempo` loses up to 0.1 s."""
    tempo = Tempo(speed, sample_rate)
    silence = np.zeros(SILENCE, np.float32)
    heard = np.concatenate([tempo.add(np.concatenate([samples, silence])), tempo.close()])
    length = round(len(samples) / speed)
    return np.pad(heard[:length], (0, max(0, length - len(heard))))


def counted(start: bytes, num_samples: int) -> bytes:
    """Return the beginning of a FLAC file that `Encoder` has made, with its length in it.

    Args:
        start: its first bytes, at least 26.
        num_samples: of the whole file.

    Source: RFC 9639, 8.2: 36 bits behind those for sample rate, channels and depth; 0 is an unknown length.
    """
    if not start.startswith(b"fLaC") or num_samples >= 2**36:
        return start
    place = int.from_bytes(start[18:26], "big") | num_samples
    return start[:18] + place.to_bytes(8, "big") + start[26:]


class Tempo:
    """Makes sound faster or slower and keeps its pitch, chunk by chunk.

    Args:
        speed: 0.25 to 4; 2 takes half as long.
        sample_rate: samples a second.

    Source: FFmpeg's `atempo` (WSOLA), which does one filter well between a half and the double.
    """

    def __init__(self, speed: float, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._num_samples = 0
        num_filters = max(1, math.ceil(abs(math.log2(speed))))
        graph = av.filter.Graph()
        self._source = graph.add_abuffer(
            format="s16", sample_rate=sample_rate, layout="mono", time_base=Fraction(1, sample_rate)
        )
        filters = [graph.add("atempo", f"{speed ** (1 / num_filters):.9f}") for _ in range(num_filters)]
        self._sink = graph.add("abuffersink")
        chain = [self._source, *filters, self._sink]
        for one, following in pairwise(chain):
            one.link_to(following)
        graph.configure()
        self._graph = graph

    def add(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what can be heard already of these samples, shape (m,)."""
        if len(samples):
            self._source.push(frame_of(samples, self._sample_rate, self._num_samples))
            self._num_samples += len(samples)
        return self._made()

    def close(self) -> NDArray[np.float32]:
        """Return the rest."""
        self._source.push(None)
        return self._made()

    def _made(self) -> NDArray[np.float32]:
        made = list(self._pull())
        levels = np.concatenate(made) if made else np.zeros(0, np.int16)
        return (levels / 32767).astype(np.float32)

    def _pull(self) -> Iterator[NDArray[np.int16]]:
        while True:
            try:
                frame = self._sink.pull()
            except (BlockingIOError, EOFError):
                return
            assert isinstance(frame, AudioFrame)  # noqa: S101 - nothing else goes in
            yield frame.to_ndarray()[0]


def frame_of(samples: NDArray[np.float32], sample_rate: int, num_before: int) -> AudioFrame:
    """Put samples into a frame, as 16-bit numbers, that begins `num_before` samples after the first."""
    finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    levels = np.rint(np.clip(finite, -1, 1) * 32767).astype(np.int16)
    frame = AudioFrame.from_ndarray(levels[np.newaxis], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, num_before, Fraction(1, sample_rate)
    return frame
