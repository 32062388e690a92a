"""Bark by its stages: requests take turns, and nobody hears that."""

from typing import Any

import numpy as np
import pytest

from services.audio.engine import AudioStepper
from services.audio.schema import SpeechRequest
from services.errors import Cancelled, InvalidRequest, ModelUnavailable
from services.registry import load_models
from services.settings import Settings
from tests.services.stepping import Arrival, Recorder, alone, run

MODEL = next(model for model in load_models() if model.id == "bark-small")
VOICE = "v2/en_speaker_0"


@pytest.fixture(scope="module")
def stepper(worker_settings: Settings) -> AudioStepper:
    return AudioStepper(MODEL, worker_settings)


def speech(text: str = "Hi. You.", voice: str | None = None) -> SpeechRequest:
    return SpeechRequest(model=MODEL.id, input=text, voice=voice)


def sound(recorder: Recorder) -> list[Any]:
    return [output.samples for output in recorder.outputs]


def test_in_company_it_says_what_it_says_alone(stepper: AudioStepper) -> None:
    arrivals = [
        Arrival(speech("Hi. You."), seed=1),
        Arrival(speech("One. Two."), seed=2, tick=1),
        Arrival(speech("Hi. You.", VOICE), seed=1, tick=2),
        Arrival(speech("Gone."), seed=3, tick=2, stop_after=5),
    ]
    recorders, _ = run(stepper, arrivals)

    assert isinstance(recorders[3].error, Cancelled)
    for arrival, recorder in zip(arrivals[:3], recorders, strict=False):
        expected = alone(stepper, arrival.request, arrival.seed)
        assert recorder.result == expected.result
        assert all(map(np.array_equal, sound(recorder), sound(expected)))
    assert not np.array_equal(sound(recorders[0])[0], sound(recorders[2])[0])  # another voice


def test_a_voice_may_have_a_name_of_the_operators(stepper: AudioStepper, worker_settings: Settings) -> None:
    tiny = MODEL.tiny.model_copy(update={"voices": {"alloy": VOICE}}) if MODEL.tiny else None
    named = AudioStepper(MODEL.model_copy(update={"tiny": tiny}), worker_settings)

    one, other = alone(named, speech("Hi.", "alloy")), alone(stepper, speech("Hi.", VOICE))
    assert all(map(np.array_equal, sound(one), sound(other)))
    with pytest.raises(InvalidRequest, match="choose one of: alloy"):
        alone(named, speech("Hi.", VOICE))


def test_a_voice_that_the_checkpoint_does_not_have_is_the_operators_to_see_to(worker_settings: Settings) -> None:
    tiny = MODEL.tiny.model_copy(update={"voices": {"alloy": "v2/xx"}}) if MODEL.tiny else None

    with pytest.raises(ModelUnavailable, match=f"no voice preset v2/xx; its checkpoint has: .*{VOICE}"):
        AudioStepper(MODEL.model_copy(update={"tiny": tiny}), worker_settings)


def test_requests_take_turns_between_stages(stepper: AudioStepper) -> None:
    _, forwards = run(stepper, [Arrival(speech("A. B. C.")), Arrival(speech("D."))])
    members = [forward.members for forward in forwards]

    assert members[:6] == [(0,), (1,)] * 3  # the short one is through before the long one's second sentence
    assert members[6:] == [(0,)] * 6


def test_the_callers_leaving_ends_every_stage_at_once(stepper: AudioStepper) -> None:
    """Also the fine one, which has no stopping criteria: a sentence takes it seconds."""
    whole = alone(stepper, speech("Hi."))
    for stop_after in {1, 9, len(whole.progress) // 2, *range(len(whole.progress) - 7, len(whole.progress) + 1)}:
        (recorder,), _ = run(stepper, [Arrival(speech("Hi."), stop_after=stop_after)])
        assert isinstance(recorder.error, Cancelled)
        assert len(recorder.progress) == stop_after
