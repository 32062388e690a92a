"""MP4 (H.264): fragmented, which plays while it is being made, or a file; knows nothing of who made the frames."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from services.media.sink import Sink

FRAGMENTED = {
    "movflags": "empty_moov+default_base_moof+frag_every_frame",  # the index first, then a fragment for each frame
    "flush_packets": "1",
}
WHOLE = {"movflags": "faststart"}  # the index first, written last: the film is moved to make room
# With AVX-512, x264 would base choices on what lies in memory by chance: now and then, frames came out otherwise.
COMPACT = {"preset": "fast", "crf": "18", "x264-params": "cpu-independent=1"}
LIVE = {**COMPACT, "tune": "zerolatency"}
SECONDS_TO_SEEK = 2  # between two frames that need no other


class Encoder:
    """Turns frames into MP4 bytes, one frame at a time; belongs to one thread at a time, whichever that is.

    As a context manager it frees the encoder however the film ends; without, call `close` or `abort`.

    Args:
        frame_rate: frames a second, 1 to 60.
        threads: of the encoder; another number gives other bytes.
        comment: goes into the file's head.
    """

    def __init__(self, frame_rate: int, threads: Literal[1, 2] = 1, comment: str = "") -> None:
        self._sink = Sink()
        container = av.open(self._sink, "w", format="mp4", options=FRAGMENTED)
        self._film = _Film(container, frame_rate, LIVE, threads, comment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()

    def add(self, frame: NDArray[np.uint8]) -> bytes:
        """Return the bytes that this frame completes: the file's header with the first, then the frame before.

        Args:
            frame: RGB, shape (height, width, 3), the same for all; an odd side grows by one pixel, a copy of its
                edge, because H.264 stores one colour for each 2 x 2 pixels.

        Raises:
            ValueError: the shape differs from the first frame's, or the film is over.
        """
        self._film.add(frame)
        return self._sink.take()

    def close(self) -> bytes:
        """Return the last frame and the end of the film, and free the encoder.

        Raises:
            ValueError: there was no frame, or the film is over.
        """
        self._film.close()
        end = self._sink.take()
        self.abort()
        return end

    def abort(self) -> None:
        """Free the encoder and forget what was not taken yet; any number of times, also after `close`."""
        self._sink.closed = True  # the container then writes no end mark
        self._film.abort()
        self._sink.take()


class FileEncoder:
    """Writes frames to a file that players can seek in, with its index first; likewise for one thread at a time.

    Args:
        path: of the file, which is read again at the end.
        frame_rate: frames a second, 1 to 60.
        threads: of the encoder; another number gives other bytes.
        comment: goes into the file's head.
    """

    def __init__(self, path: Path, frame_rate: int, threads: Literal[1, 2] = 1, comment: str = "") -> None:
        container = av.open(str(path), "w", format="mp4", options=WHOLE)
        self._film = _Film(container, frame_rate, COMPACT, threads, comment)

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Take a frame, as `Encoder` does.

        Raises:
            ValueError: the shape differs from the first frame's, or the film is over.
        """
        self._film.add(frame)

    def close(self) -> None:
        """Finish the file, and free the encoder.

        Raises:
            ValueError: there was no frame, or the film is over.
        """
        self._film.close()

    def abort(self) -> None:
        """Free the encoder; any number of times, also after `close`."""
        self._film.abort()


class _Film:
    """Frames of one shape on their way into a container, which it owns."""

    def __init__(
        self,
        container: OutputContainer,
        frame_rate: int,
        options: dict[str, str],
        threads: Literal[1, 2],
        comment: str,
    ) -> None:
        self._container = container
        if comment:
            container.metadata["comment"] = comment
        self._time_base = Fraction(1, frame_rate)
        self._options = options
        self._threads = threads
        self._shape: tuple[int, ...] = ()
        self._num_frames = 0
        self._is_over = False
        self._stream: VideoStream | None = None
        self._to_yuv = VideoReformatter()

    def add(self, frame: NDArray[np.uint8]) -> None:
        if self._is_over:
            raise ValueError("the film is over")
        if self._stream is None:
            self._shape = frame.shape
            self._stream = self._open(height=frame.shape[0], width=frame.shape[1])
        if frame.shape != self._shape:
            raise ValueError(f"a frame has the shape {frame.shape}, the first had {self._shape}")
        self._container.mux(self._stream.encode(self._picture(frame)))

    def close(self) -> None:
        if self._stream is None:
            raise ValueError("the film is over" if self._is_over else "a film needs at least one frame")
        self._container.mux(self._stream.encode(None))
        self.abort()

    def abort(self) -> None:
        self._is_over = True
        self._container.close()
        self._stream = None

    def _open(self, height: int, width: int) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=1 / self._time_base, options=self._options)
        codec = stream.codec_context
        codec.width, codec.height, codec.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        codec.thread_count = self._threads
        codec.gop_size = SECONDS_TO_SEEK * self._time_base.denominator
        # Said aloud: a player that has to guess takes another matrix for small films than for large ones.
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return stream

    def _picture(self, frame: NDArray[np.uint8]) -> av.VideoFrame:
        height, width, _ = frame.shape
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        picture = self._to_yuv.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        picture.pts, picture.time_base, picture.duration = self._num_frames, self._time_base, 1
        self._num_frames += 1
        return picture
