import struct
import wave
from io import BytesIO

import numpy as np
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from services.media import wav

SAMPLES = arrays.arrays(np.float32, st.integers(0, 300), elements=st.floats(-1, 1, width=32))
ANYTHING = arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32))


def encode(*chunks: NDArray[np.float32], sample_rate: int = 24_000) -> bytes:
    encoder = wav.Encoder(sample_rate)
    return b"".join(encoder.add(chunk) for chunk in chunks) + encoder.close()


def pcm(file: bytes) -> NDArray[np.int16]:
    samples, _ = soundfile.read(BytesIO(file), dtype="int16")
    return np.asarray(samples, dtype=np.int16)


@given(chunks=st.lists(SAMPLES, min_size=1, max_size=5), sample_rate=st.sampled_from([8_000, 24_000, 48_000]))
@settings(deadline=None)
def test_sound_comes_back_within_half_a_level(chunks: list[NDArray[np.float32]], sample_rate: int) -> None:
    sound = np.concatenate(chunks)

    file = encode(*chunks, sample_rate=sample_rate)

    read, rate = soundfile.read(BytesIO(file), dtype="int16")
    assert rate == sample_rate
    assert read.shape == sound.shape
    assert np.abs(read - sound * 32767.0).max(initial=0) <= 0.5 + 1e-3


@given(SAMPLES)
@settings(deadline=None)
def test_the_standard_library_reads_the_same(samples: NDArray[np.float32]) -> None:
    file = encode(samples, sample_rate=22_050)

    with wave.open(BytesIO(file)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, 22_050)
        assert reader.readframes(len(samples) + 10) == pcm(file).tobytes()


@given(chunks=st.lists(SAMPLES, min_size=1, max_size=5))
@settings(deadline=None)
def test_cutting_a_sound_into_chunks_does_not_change_the_file(chunks: list[NDArray[np.float32]]) -> None:
    assert encode(*chunks) == encode(np.concatenate(chunks))


@given(ANYTHING)
@settings(deadline=None)
def test_what_is_not_a_number_is_silence_and_what_is_too_loud_is_clipped(samples: NDArray[np.float32]) -> None:
    read = pcm(encode(samples))

    assert (read[~np.isfinite(samples)] == 0).all()
    assert (read[np.isfinite(samples) & (samples >= 1)] == 32767).all()
    assert (read[np.isfinite(samples) & (samples <= -1)] == -32767).all()


def test_the_header_leaves_with_the_first_chunk_and_only_then() -> None:
    encoder = wav.Encoder(24_000)
    chunk = np.zeros(10, np.float32)

    first, second = encoder.add(chunk), encoder.add(chunk)

    assert first.startswith(b"RIFF\xff\xff\xff\xffWAVE")
    assert first[20:36] == struct.pack("<HHIIHH", 1, 1, 24_000, 48_000, 2, 16)
    assert len(first) == 44 + 20
    assert second == bytes(20)
    assert encoder.close() == b""


def test_a_sound_without_samples_is_still_a_file() -> None:
    assert len(pcm(encode())) == 0


def test_what_has_arrived_can_be_heard_already() -> None:
    tone = np.sin(np.arange(4_000) / 10).astype(np.float32)
    encoder = wav.Encoder(16_000)

    arrived = encoder.add(tone) + encoder.add(tone)[:1_000]

    assert (pcm(arrived) == pcm(encode(tone, tone))[:4_500]).all()
