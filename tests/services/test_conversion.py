"""Finished files in other formats: what is in them is the same, and what they say of themselves."""

from io import BytesIO
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from gateway.provenance.containers import format_of
from gateway.provenance.statement import Statement, statement_of
from services.audio import answers as speech
from services.audio.schema import Format as SoundFormat
from services.engine.events import Done
from services.engine.outputs import Sound
from services.finals import FilmFiles
from services.image import answers as pictures
from services.image.schema import OutputFormat
from services.media import film as films
from services.media import sound
from services.settings import Settings
from services.video import service as video
from services.video.schema import Format as FilmFormat
from tests.services.encoding import PROVENANCE

SETTINGS = Settings()
NO_HEAD = "pcm"
SOUNDS = [form for form in get_args(SoundFormat) if form != NO_HEAD]
RATE = 24_000
TONE = (0.5 * np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE)).astype(np.float32)
SMOOTH = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (64, 64, 3)).copy()
FRAMES = [np.full((32, 48, 3), level, np.uint8) for level in (30, 90, 150, 210)]


def said(data: bytes) -> Statement | None:
    form = format_of(data)
    assert form is not None
    return statement_of(data, form)


def as_made() -> Statement:
    made = PROVENANCE
    return Statement(model=made.model, revision=made.revision, seed=made.seed, parameters=made.parameters)


def film(form: FilmFormat) -> bytes:
    files = FilmFiles(7, len(FRAMES), PROVENANCE, form)
    for frame in FRAMES:
        files.add(frame)
    try:
        return b"".join(next(files.close(Done())).pieces)
    finally:
        files.abort()


def spoken(form: SoundFormat) -> bytes:
    encoder = speech.SpeechEncoder(form, 1.0, PROVENANCE)
    content = encoder.add(Sound(TONE, RATE)) + encoder.close(Done())
    return encoder.finished(content, len(content))


@pytest.mark.parametrize("made", get_args(OutputFormat))
@pytest.mark.parametrize("wanted", get_args(OutputFormat))
def test_a_picture_is_the_same_in_another_format(made: OutputFormat, wanted: OutputFormat) -> None:
    before = pictures.written(SMOOTH, made, 100, PROVENANCE)
    after = pictures.converted(before, wanted, PROVENANCE, SETTINGS)

    picture = Image.open(BytesIO(after))
    assert picture.format == wanted.upper()
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - SMOOTH).max() <= 6
    assert said(after) == as_made()


@pytest.mark.parametrize("made", SOUNDS)
@pytest.mark.parametrize("wanted", SOUNDS)
def test_speech_is_the_same_in_another_format(made: SoundFormat, wanted: SoundFormat) -> None:
    after = speech.converted(spoken(made), wanted, PROVENANCE, SETTINGS)

    samples, rate = sound.read(after)
    assert len(samples) / rate == pytest.approx(1, abs=0.15)  # codecs put a little silence around it
    tones = np.abs(np.fft.rfft(samples))
    assert tones.argmax() * rate / len(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)
    assert said(after) == as_made()


@pytest.mark.parametrize("made", get_args(FilmFormat))
@pytest.mark.parametrize("wanted", get_args(FilmFormat))
def test_a_film_is_the_same_in_another_format(made: FilmFormat, wanted: FilmFormat) -> None:
    after = video.converted(film(made), wanted, PROVENANCE, SETTINGS)

    read = films.read(after)
    assert (read.frame_rate, read.num_frames) == (7, len(FRAMES))
    for frame, expected in zip(read.frames, FRAMES, strict=True):
        assert np.abs(frame.astype(int) - expected).max() <= 6
    assert said(after) == as_made()


@pytest.mark.parametrize("data", [b"", b"nothing of that kind", b"GIF89a", b"RIFF____WEBP", b"\0\0\0\x08ftypisom"])
def test_what_is_none_is_refused(data: bytes) -> None:
    for convert in (
        lambda: pictures.converted(data, "png", PROVENANCE, SETTINGS),
        lambda: speech.converted(data, "wav", PROVENANCE, SETTINGS),
        lambda: video.converted(data, "gif", PROVENANCE, SETTINGS),
    ):
        with pytest.raises(ValueError, match=r"."):
            convert()
