"""Which voices there are: said at once where the registry knows, else by the checkpoint, which is loaded for that."""

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from services.audio.service import voices_of
from services.engine.slots import Slot
from services.errors import ModelLoading, ModelUnavailable, UnknownModel
from services.registry import Model
from services.settings import Settings
from tests.services.conftest import MakeBench, Scripted

pytestmark = pytest.mark.anyio

BARK = Model.model_validate({"id": "bark", "task": "audio", "folder": {"path": "bark"}})
NAMED = BARK.model_copy(update={"id": "named", "voices": {"alloy": "v2/en_speaker_6"}})


class Speaker(Scripted):
    """A model with voices."""

    voices = ("one", "two")


def worker(make_bench: MakeBench, make: Any) -> Any:
    """What the route needs of one: two models that nobody has asked for yet."""
    models = {model.id: model for model in (BARK, NAMED)}
    bench = make_bench({name: Slot(make, is_preloaded=False) for name in models})
    return SimpleNamespace(models=models, engine=bench.engine, settings=Settings())


async def names(model: str | None, of: Any) -> list[str]:
    found = json.loads(bytes((await voices_of(model, of)).body))
    assert [each["id"] for each in found["data"]] == found["voices"]
    voices: list[str] = found["voices"]
    return voices


async def test_what_the_registry_names_is_said_of_a_model_that_is_not_loaded(make_bench: MakeBench) -> None:
    audio = worker(make_bench, Speaker)

    assert await names("named", audio) == ["alloy"]
    assert audio.engine.look("named").state == "cold"
    with pytest.raises(UnknownModel):
        await names("tts-1", audio)


async def test_what_the_checkpoint_alone_knows_is_said_once_it_is_loaded(make_bench: MakeBench) -> None:
    audio = worker(make_bench, Speaker)
    with pytest.raises(ModelLoading, match="model 'bark' is loading") as refusal:
        await names(None, audio)
    assert refusal.value.retry_after is not None
    while audio.engine.look("bark").state != "ready":
        await asyncio.to_thread(threading.Event().wait, 0.001)

    assert await names(None, audio) == ["one", "two"]


async def test_a_model_that_has_failed_is_not_tried_again_for_its_voices(make_bench: MakeBench) -> None:
    attempts = []

    def fail() -> Speaker:
        attempts.append(1)
        raise OSError("no")

    audio = worker(make_bench, fail)
    with pytest.raises(ModelLoading):
        await names(None, audio)
    while audio.engine.look("bark").state != "failed":
        await asyncio.to_thread(threading.Event().wait, 0.001)
    for _ in range(2):
        with pytest.raises(ModelUnavailable):
            await names(None, audio)

    assert attempts == [1]
