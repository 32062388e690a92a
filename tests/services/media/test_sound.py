"""Sound in four formats by what independent readers find, and faster or slower with its pitch kept."""

from io import BytesIO
from typing import get_args

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from services.media import sound, wav

RATE = 24_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)).astype(np.float32)
TAGS = {"comment": "made by a machine", "model": "größe"}
by_format = pytest.mark.parametrize("form", get_args(sound.Format))


def pieces(form: sound.Format, samples: NDArray[np.float32], size: int = 5_000, rate: int = RATE) -> list[bytes]:
    encoder = sound.Encoder(form, rate, TAGS)
    return [*(encoder.add(samples[at : at + size]) for at in range(0, len(samples), size)), encoder.close()]


def loudest(samples: NDArray[np.float32], rate: int) -> float:
    """The frequency that there is most of, in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def with_length(flac: bytes, num_samples: int) -> bytes:
    """Write the number of samples into the head of a stream, which libsndfile does not take without."""
    head = bytearray(flac[:26])
    assert head[21] & 0x0F == 0
    assert head[22:26] == bytes(4)  # unknown
    head[22:26] = num_samples.to_bytes(4, "big")
    return bytes(head) + flac[26:]


@by_format
def test_other_software_hears_the_same(form: sound.Format) -> None:
    file = b"".join(pieces(form, TONE))
    if form == "aac":  # which libsndfile does not know
        with av.open(BytesIO(file), "r") as container:
            heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            rate = container.streams.audio[0].rate
    else:
        heard, rate = soundfile.read(BytesIO(with_length(file, len(TONE)) if form == "flac" else file), dtype="float32")

    assert rate in (RATE, 48_000)
    assert len(heard) / rate == pytest.approx(3, abs=0.1)
    assert loudest(heard, rate) == pytest.approx(440, abs=2)
    if form == "flac":
        assert np.abs(heard - TONE).max() < 1e-4


@by_format
def test_tags_are_in_the_file(form: sound.Format) -> None:
    with av.open(BytesIO(b"".join(pieces(form, TONE))), "r") as container:
        tags = {**container.metadata, **container.streams.audio[0].metadata}

    assert TAGS.items() <= {name.lower(): text for name, text in tags.items()}.items()


@by_format
def test_bytes_leave_as_sound_comes_and_are_the_same_again(form: sound.Format) -> None:
    long = np.tile(TONE, 10)
    made = pieces(form, long)

    assert made == pieces(form, long)
    assert sum(map(len, made[-2:])) < 0.05 * sum(map(len, made))  # nothing is kept for the end


@by_format
def test_a_rate_that_a_codec_does_not_know_is_stored_as_another(form: sound.Format) -> None:
    file = b"".join(pieces(form, TONE, rate=22_050))
    with av.open(BytesIO(file), "r") as container:
        stream = container.streams.audio[0]
        num_samples = sum(frame.samples for frame in container.decode(stream))

    assert num_samples / stream.rate == pytest.approx(len(TONE) / 22_050, abs=0.1)


@by_format
def test_what_is_over_takes_no_more(form: sound.Format) -> None:
    encoder = sound.Encoder(form, RATE)
    encoder.add(TONE[:100])
    encoder.abort()
    encoder.abort()

    with pytest.raises(ValueError, match="over"):
        encoder.add(TONE)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.5, 4])
@pytest.mark.parametrize("num_samples", [1, 100, 2_000, 9_600])
def test_of_a_whole_sound_nothing_is_kept_back(speed: float, num_samples: int) -> None:
    heard = sound.at_speed(TONE[:num_samples], speed, RATE)

    assert len(heard) == round(num_samples / speed)
    if num_samples == 9_600:
        end = heard[-round(500 / speed) :]
        assert end.std() == pytest.approx(TONE.std(), rel=0.2)  # it does not fade


@pytest.mark.parametrize("speed", [0.25, 0.3, 0.7, 1.5, 2, 3, 4])
def test_speed_changes_the_length_and_not_the_pitch(speed: float) -> None:
    tempo = sound.Tempo(speed, RATE)
    parts = [tempo.add(TONE[at : at + 5_000]) for at in range(0, len(TONE), 5_000)]
    heard = np.concatenate([*parts, tempo.close()])

    assert len(heard) == pytest.approx(len(TONE) / speed, rel=0.02)
    assert loudest(heard, RATE) == pytest.approx(440, abs=4)
    assert sum(map(len, parts)) > 0.8 * len(heard)  # it is heard as it comes


def test_riff_tags_are_before_the_sound() -> None:
    file = wav.Encoder(RATE, {"ISFT": "Somebody", "ICMT": "odd"}).add(TONE)
    with soundfile.SoundFile(BytesIO(file)) as reader:
        assert reader.copy_metadata() == {"software": "Somebody", "comment": "odd"}
        assert reader.read(dtype="int16").shape == TONE.shape
