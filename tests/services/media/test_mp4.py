import ctypes
import gc
import threading
from io import BytesIO
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from av.codec.context import CodecContext
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.media import mp4


def film(num_frames: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """Coloured tiles that move two pixels a frame."""
    tiles = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    scene = tiles.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return [np.roll(scene, 2 * index, axis=1) for index in range(num_frames)]


def encode(frames: list[NDArray[np.uint8]], frame_rate: int = 7, threads: Literal[1, 2] = 1) -> list[bytes]:
    with mp4.Encoder(frame_rate, threads) as encoder:
        return [*(encoder.add(frame) for frame in frames), encoder.close()]


def decode(file: bytes) -> list[NDArray[np.uint8]]:
    with av.open(BytesIO(file), "r") as container:
        return [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)]


def boxes(file: bytes) -> list[str]:
    names = []
    while file:
        size = int.from_bytes(file[:4], "big")
        assert 8 <= size <= len(file), "a box is cut"
        names.append(file[4:8].decode("ascii"))
        file = file[size:]
    return names


@given(frame_rate=st.integers(1, 60), num_frames=st.integers(1, 6), threads=st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=20)
def test_every_frame_comes_back_at_its_time(frame_rate: int, num_frames: int, threads: Literal[1, 2]) -> None:
    frames = film(num_frames)

    file = b"".join(encode(frames, frame_rate, threads))

    with av.open(BytesIO(file), "r") as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height) == (64, 48)
        assert video.average_rate == frame_rate
        read = list(container.decode(video))
    assert [frame.time for frame in read] == pytest.approx([index / frame_rate for index in range(num_frames)])
    for before, after in zip(frames, read, strict=True):
        assert np.abs(after.to_ndarray(format="rgb24").astype(int) - before).mean() < 6


def test_the_index_comes_first_then_a_fragment_a_frame() -> None:
    pieces = encode(film(5))

    assert [boxes(piece) for piece in pieces] == [["ftyp", "moov"], *[["moof", "mdat"]] * 4, ["moof", "mdat", "mfra"]]


@pytest.mark.parametrize("num_pieces", [2, 3, 4, 5])
def test_a_film_plays_as_far_as_it_has_come(num_pieces: int) -> None:
    pieces = encode(film(5))

    arrived = decode(b"".join(pieces[:num_pieces]))

    whole = decode(b"".join(pieces))
    assert len(arrived) == num_pieces - 1
    for early, late in zip(arrived, whole, strict=False):
        assert (early == late).all()


@given(height=st.integers(1, 50), width=st.integers(1, 50))
@settings(deadline=None, max_examples=30)
def test_an_odd_side_grows_by_a_copy_of_its_edge(height: int, width: int) -> None:
    frame = film(1, height, width)[0]

    (read,) = decode(b"".join(encode([frame])))

    assert read.shape == (height + height % 2, width + width % 2, 3)
    padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert read.tobytes() == decode(b"".join(encode([padded])))[0].tobytes()


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 30, 120)])
def test_a_colour_comes_back_and_the_file_says_how_to_read_it(colour: tuple[int, int, int]) -> None:
    file = b"".join(encode([np.full((32, 32, 3), colour, np.uint8)]))

    assert np.abs(decode(file)[0].astype(int) - colour).max() <= 3
    with av.open(BytesIO(file), "r") as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_frames_make_the_same_file(threads: Literal[1, 2]) -> None:
    frames = film(4, height=128)  # a lower picture is not shared out among threads

    assert encode(frames, threads=threads) == encode(frames, threads=threads)


def test_they_do_whatever_lies_in_memory(tmp_path: Path) -> None:
    """What a process has used and given back is not zero, as it is in one that is new."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) // 4 + 96 for _ in range(4)]
    path, files = tmp_path / "film.mp4", set()
    for _ in range(100):
        soil(rng)
        encoder = mp4.FileEncoder(path, 7)
        for frame in frames:
            encoder.add(frame)
        encoder.close()
        files.add(path.read_bytes())

    assert len(files) == 1


def soil(rng: np.random.Generator) -> None:
    """Leave numbers in the memory that whoever comes next is given."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    sizes = [int(size) for size in rng.choice([1_000, 5_000, 20_000, 70_000, 300_000], 60)]
    blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))) for size in sizes]
    for block, size in zip(blocks, sizes, strict=True):
        libc.memset(block, int(rng.integers(256)), ctypes.c_size_t(size))
    for block in blocks:
        libc.free(block)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_encoder_takes_no_more_threads_than_it_was_given(threads: Literal[1, 2]) -> None:
    assert f" threads={threads} ".encode() in b"".join(encode(film(1, height=128), threads=threads))


def test_a_view_of_a_larger_array_is_filmed_as_it_looks() -> None:
    view = film(1, 64, 128)[0][::-2, ::2]

    assert encode([view]) == encode([np.ascontiguousarray(view)])


def test_the_frames_of_one_film_have_one_size() -> None:
    with mp4.Encoder(7) as encoder:
        encoder.add(np.zeros((32, 32, 3), np.uint8))

        with pytest.raises(ValueError, match=r"the shape \(32, 34, 3\), the first had \(32, 32, 3\)"):
            encoder.add(np.zeros((32, 34, 3), np.uint8))


def test_a_film_needs_a_frame() -> None:
    with mp4.Encoder(7) as encoder, pytest.raises(ValueError, match="at least one frame"):
        encoder.close()


def test_a_film_that_is_over_takes_no_frame() -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    closed, aborted = mp4.Encoder(7), mp4.Encoder(7)
    closed.add(frame)
    closed.close()
    aborted.abort()

    for encoder in (closed, aborted):
        with pytest.raises(ValueError, match="the film is over"):
            encoder.add(frame)
        with pytest.raises(ValueError, match="the film is over"):
            encoder.close()


def num_open_codecs() -> int:
    return sum(isinstance(thing, CodecContext) for thing in gc.get_objects())


@pytest.mark.parametrize("num_frames", [0, 1, 3])
def test_a_caller_who_leaves_midway_leaves_no_encoder_behind(num_frames: int) -> None:
    gc.collect()
    gc.disable()  # the encoder goes at once, not when somebody sweeps
    try:
        before = num_open_codecs()
        encoder = mp4.Encoder(7, threads=2)
        for frame in film(num_frames):
            encoder.add(frame)
        assert num_open_codecs() == before + (num_frames > 0)

        encoder.abort()
        encoder.abort()

        assert num_open_codecs() == before
    finally:
        gc.enable()


def test_the_context_frees_the_encoder_also_when_a_frame_fails() -> None:
    encoder = mp4.Encoder(7)
    encoder.add(film(1)[0])

    with pytest.raises(RuntimeError, match="the model failed"), encoder:
        raise RuntimeError("the model failed")

    with pytest.raises(ValueError, match="the film is over"):
        encoder.add(film(1)[0])


def test_two_films_at_once_do_not_mix() -> None:
    scenes = [film(4), [255 - frame for frame in film(4)]]
    files: list[list[bytes]] = [[], []]

    def work(index: int) -> None:
        files[index] = encode(scenes[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert files == [encode(scene) for scene in scenes]


def test_each_step_may_run_on_another_thread() -> None:
    frames, pieces = film(3), []
    encoder = mp4.Encoder(7)
    steps = [*(lambda frame=frame: encoder.add(frame) for frame in frames), encoder.close]

    for step in steps:
        thread = threading.Thread(target=lambda step=step: pieces.append(step()))
        thread.start()
        thread.join()

    assert pieces == encode(frames)
