"""What the trained speech model says is what is written, in the voice that is asked for, whatever the engine is set to.

A judge writes down what it hears. The sentences are English, and training had words of letters by chance.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from transformers import BarkModel

from services.audio.engine import AudioStepper, Stage
from services.audio.schema import SpeechRequest
from services.errors import GenerationFailed
from services.registry import Model, load_models
from services.settings import Settings
from services.tiny.train.speaker import untrained
from tests.services.copies import copied
from tests.services.ears import Heard, listen
from tests.services.exams import Exam, Mark, failed, sit
from tests.services.stepping import Arrival, Recorder, run

MODEL = next(model for model in load_models(profile="tiny") if model.id == "letters")
PITCHES = {"bass": 150, "tenor": 225, "alto": 300, "soprano": 450}  # Hz
SIGN = 0.08  # seconds of a letter, a gap, and of the pause after a sentence
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Wish:
    """What is to be said, and by whom."""

    voice: str
    text: str

    @property
    def signs(self) -> str:
        """Letters, digits and gaps."""
        return re.sub("[^a-z0-9]+", " ", self.text.lower()).strip()


SENTENCES = (
    "Hello, world!",
    "Call 68 42, gate 7.",
    "Who won - and why?",
    "A queen of jazz",
    "Six big fox dens",
    "Bus 35 at 10 past 9.",
    "Vex the lazy dog.",
    "MAKE up, make test",
)
WISHES = tuple(
    Wish(voice, sentence) for number, sentence in enumerate(SENTENCES) for voice in list(PITCHES)[number % 2 :: 2]
)


def letters(wish: Wish, heard: Heard) -> Sequence[Mark]:
    """Each at its place."""
    said = heard.text.ljust(len(wish.signs))
    return [Mark(said[place] == sign, sign) for place, sign in enumerate(wish.signs) if sign != " "]


def gaps(wish: Wish, heard: Heard) -> Sequence[Mark]:
    """Where words end, and nowhere else."""
    is_right = heard.text.count(" ") == wish.signs.count(" ") and _ends(heard.text) == _ends(wish.signs)
    return [Mark(is_right, wish.voice)]


def _ends(text: str) -> list[int]:
    return [place for place, sign in enumerate(text) if sign == " "]


def pitch(wish: Wish, heard: Heard) -> Sequence[Mark]:
    """Of each letter: the voice's."""
    found = _of_letters(wish, heard.pitches)
    return [Mark(abs(each / PITCHES[wish.voice] - 1) < 0.02, wish.voice) for each in found]


def duration(wish: Wish, heard: Heard) -> Sequence[Mark]:
    return [Mark(abs(heard.seconds - SIGN * (len(wish.signs) + 1)) < SIGN / 2, wish.voice)]


def silence(wish: Wish, heard: Heard) -> Sequence[Mark]:
    """Between words, where there are several."""
    return [Mark(20 < heard.silence < np.inf or " " not in wish.signs, wish.voice)]


def cleanness(wish: Wish, heard: Heard) -> Sequence[Mark]:
    """Of each letter: there is hardly anything but the tone and its overtones."""
    signs = wish.signs.replace(" ", "")
    return [Mark(ratio > 20, sign) for sign, ratio in zip(signs, _of_letters(wish, heard.cleanness), strict=True)]


def _of_letters(wish: Wish, found: Sequence[float]) -> Sequence[float]:
    """Return a number for each letter that is to be heard; 0 where it is not."""
    num_letters = len(wish.signs.replace(" ", ""))
    return [*found, *[0.0] * num_letters][:num_letters]


EXAMS = {
    "letters": Exam(0.97, None, letters),
    "gaps": Exam(0.9, 1 / 4, gaps),
    "pitch": Exam(0.97, None, pitch),
    "duration": Exam(0.9, 1 / 4, duration),
    "silence": Exam(0.9, 1 / 4, silence),
    "cleanness": Exam(0.97, 1 / 2, cleanness),
}


def load(settings: Settings, model: Model = MODEL, dtype: str = "float32") -> AudioStepper:
    return AudioStepper(model, settings.model_copy(update={"dtype": dtype}))


def speech(text: str, voice: str | None = None) -> SpeechRequest:
    return SpeechRequest(model=MODEL.id, input=text, voice=voice)


def spoken(stepper: AudioStepper, wishes: Sequence[Wish] = WISHES) -> list[Recorder]:
    """Have all said; at every tick somebody else joins."""
    arrivals = [Arrival(speech(wish.text, wish.voice), seed=n, tick=n) for n, wish in enumerate(wishes)]
    return run(stepper, arrivals)[0]


def heard(recorder: Recorder) -> list[Heard]:
    """What is heard of each sentence."""
    assert recorder.error is None
    return [listen(sound.samples, sound.sample_rate) for sound in recorder.outputs]


def marks(wishes: Sequence[Wish], sounds: Sequence[Heard]) -> dict[str, list[Mark]]:
    """Judge what was heard of each wish."""
    return sit(EXAMS, zip(wishes, sounds, strict=True))


def failed_by(stepper: AudioStepper, wishes: Sequence[Wish] = WISHES) -> dict[str, str]:
    return failed(marks(wishes, [sound for recorder in spoken(stepper, wishes) for sound in heard(recorder)]), EXAMS)


def test_nobody_passes_by_luck() -> None:
    nothing = marks(WISHES, [Heard("", [], [], 0.0, 0.0)] * len(WISHES))
    for name, exam in EXAMS.items():
        assert exam.luck(nothing[name]) < 1e-5, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_says_what_is_written_as_the_voice_does(worker_settings: Settings, dtype: str) -> None:
    assert not failed_by(load(worker_settings, dtype=dtype))


@pytest.fixture(scope="module")
def plain(worker_settings: Settings) -> AudioStepper:
    return load(worker_settings)


def test_in_company_it_says_what_it_says_alone(plain: AudioStepper) -> None:
    company = spoken(plain, WISHES[:3])
    for number, wish in enumerate(WISHES[:3]):
        (alone,), _ = run(plain, [Arrival(speech(wish.text, wish.voice), seed=number)])
        assert np.array_equal(company[number].outputs[0].samples, alone.outputs[0].samples)


# --- several sentences: each is said after what was said before it, by the same voice ---

STORY = ("Who are you?", "I am a bark of 4 voices!", "Ok.", "So: say it again, and say it 3 times.")


def told(stepper: AudioStepper, voice: str) -> dict[str, str]:
    (recorder,), _ = run(stepper, [Arrival(speech(" ".join(STORY), voice), seed=1)])
    return failed(marks([Wish(voice, sentence) for sentence in STORY], heard(recorder)), EXAMS)


@pytest.mark.parametrize("voice", PITCHES)
def test_a_voice_carries_over_from_sentence_to_sentence(plain: AudioStepper, voice: str) -> None:
    assert not told(plain, voice)


def test_who_names_no_voice_gets_one_and_keeps_it(plain: AudioStepper) -> None:
    arrivals = [Arrival(speech("Who am I? A voice. But which?"), seed=seed) for seed in range(12)]
    chosen = []
    for recorder in run(plain, arrivals)[0]:
        pitches = [found for sentence in heard(recorder) for found in sentence.pitches]
        chosen.append(min(PITCHES, key=lambda voice: abs(PITCHES[voice] - median(pitches))))
        assert max(pitches) < 1.02 * min(pitches)
        assert abs(pitches[0] / PITCHES[chosen[-1]] - 1) < 0.02

    assert len(set(chosen)) > 1


def test_a_long_sentence_is_said_to_its_end(plain: AudioStepper) -> None:
    wish = Wish("tenor", "one two three four five six seven eight nine ten " * 3 + "and no more")
    (recorder,), _ = run(plain, [Arrival(speech(wish.text, wish.voice))])
    (sound,) = heard(recorder)

    assert np.mean([mark.is_right for mark in letters(wish, sound)]) >= 0.95
    assert all(mark.is_right for mark in duration(wish, sound))


def test_who_asks_for_nothing_to_be_said_is_told(plain: AudioStepper) -> None:
    (recorder,), _ = run(plain, [Arrival(speech("... !!!", "alto"))])

    assert isinstance(recorder.error, GenerationFailed)


# --- what breaks meaning fails ---


@pytest.mark.parametrize(
    ("stage", "fails"),
    [
        ("semantic", {"letters", "gaps", "duration"}),
        ("coarse_acoustics", {"letters", "gaps", "pitch", "cleanness"}),
        ("fine_acoustics", {"cleanness"}),
    ],
)
def test_a_stage_that_has_learned_nothing_fails(
    worker_settings: Settings, tmp_path: Path, stage: str, fails: set[str]
) -> None:
    model = copied(MODEL, tmp_path)
    network: Any = BarkModel.from_pretrained(tmp_path)
    setattr(network, stage, getattr(untrained().network, stage))
    network.save_pretrained(tmp_path)

    assert set(failed_by(load(worker_settings, model), WISHES[:2])) >= fails


def test_a_voice_that_is_another_fails(worker_settings: Settings) -> None:
    voices = dict(zip(PITCHES, [*list(PITCHES)[1:], "bass"], strict=True))
    swapped = load(worker_settings, MODEL.model_copy(update={"voices": voices}))

    assert set(failed_by(swapped, WISHES[:4])) == {"pitch"}


def test_a_voice_that_is_forgotten_fails(worker_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = load(worker_settings)
    advance = stepper.advance

    def forgetful(state: Any, row: Any) -> Any:
        result = advance(state, row)
        if state.stage is Stage.SEMANTIC:
            state.history = None
        return result

    monkeypatch.setattr(stepper, "advance", forgetful)

    assert {name for voice in PITCHES for name in told(stepper, voice)} == {"pitch"}
