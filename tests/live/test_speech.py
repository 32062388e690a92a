"""The official SDK speaks: files that other software opens, events, voices, and what is refused by its name."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
from numpy.typing import NDArray

from tests.live.conftest import LONG, System

MODEL, VOICE, SECOND_VOICE = "bark-small", "v2/en_speaker_1", "v2/de_speaker_1"
TEXT = "One. Two. Three. Four."
GIVEN: dict[str, Any] = {"model": MODEL, "voice": VOICE, "input": TEXT, "extra_body": {"seed": 3}}
FORMATS = {"mp3": "mp3float", "opus": "opus", "aac": "aac", "flac": "flac", "wav": "pcm_s16le"}


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def samples(client: openai.OpenAI) -> NDArray[np.int16]:
    """What is said, as it was made."""
    return np.frombuffer(client.audio.speech.create(**GIVEN, response_format="pcm").content, "<i2")


def decoded(file: bytes) -> tuple[str, float, dict[str, str]]:
    """Codec, seconds and tags."""
    with av.open(io.BytesIO(file), "r") as container:
        stream = container.streams.audio[0]
        num_samples = sum(frame.samples for frame in container.decode(stream))
        tags = {**container.metadata, **stream.metadata}
        return stream.codec_context.name, num_samples / stream.rate, {name.lower(): tags[name] for name in tags}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_of_its_format_as_long_as_the_speech_and_says_where_it_comes_from(
    client: openai.OpenAI, samples: NDArray[np.int16], form: Any
) -> None:
    file = client.audio.speech.create(**GIVEN, response_format=form).content
    codec, seconds, tags = decoded(file)

    assert codec == FORMATS[form]
    assert seconds == pytest.approx(len(samples) / 24_000, abs=0.12)  # codecs pad
    assert "AI-generated" in tags["comment"]
    assert MODEL in tags.get("model", tags["comment"])
    assert b"Three" not in file


def test_what_is_not_lossy_is_the_speech_itself(client: openai.OpenAI, samples: NDArray[np.int16]) -> None:
    file = client.audio.speech.create(**GIVEN, response_format="wav").content
    read, rate = soundfile.read(io.BytesIO(file), dtype="int16")

    assert rate == 24_000
    assert np.array_equal(read, samples)


def test_it_is_mp3_unless_asked_for_something_else(system: System) -> None:
    url, body = f"{system.gateway}/v1/audio/speech", {"input": "One."}
    plain = httpx.post(url, json=body, timeout=LONG)
    accepted = httpx.post(url, json=body, headers={"accept": "audio/flac"}, timeout=LONG)

    assert plain.headers["content-type"] == "audio/mpeg"
    assert decoded(plain.content)[0] == "mp3float"
    assert accepted.headers["content-type"] == "audio/flac"
    assert decoded(accepted.content)[0] == "flac"


@pytest.mark.parametrize("speed", [0.25, 1.5, 4.0])
def test_speed_changes_how_long_it_takes(client: openai.OpenAI, samples: NDArray[np.int16], speed: float) -> None:
    file = client.audio.speech.create(**GIVEN, response_format="pcm", speed=speed).content

    assert len(file) / 2 == pytest.approx(len(samples) / speed, rel=0.05, abs=1200)


def test_a_voice_may_be_an_object_and_another_sounds_otherwise(client: openai.OpenAI) -> None:
    def spoken(voice: Any) -> bytes:
        given = {**GIVEN, "input": "One.", "voice": voice}
        return client.audio.speech.create(**given, response_format="pcm").content

    assert spoken({"id": VOICE}) == spoken(VOICE)
    assert spoken(SECOND_VOICE) != spoken(VOICE)


def test_sound_comes_sentence_by_sentence(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(**GIVEN, response_format="pcm") as response:
        pieces = list(response.http_response.iter_raw())

    assert len(pieces) >= 4
    assert "content-length" not in response.headers
    assert response.headers["x-seed"] == "3"


def events(text: str) -> list[dict[str, Any]]:
    *blocks, end = text.strip().split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(block.split("data: ", 1)[1]) for block in blocks]


@pytest.mark.parametrize("form", ["pcm", "mp3"])
def test_events_hold_the_same_file(client: openai.OpenAI, form: Any) -> None:
    file = client.audio.speech.create(**GIVEN, response_format=form).content
    told = events(client.audio.speech.create(**GIVEN, response_format=form, stream_format="sse").text)
    *deltas, last = told

    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert len(deltas) >= 4
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == file
    assert last["type"] == "speech.audio.done"
    assert last["usage"]["total_tokens"] == 0
    assert last["usage"]["audio_seconds"] > 1


def test_the_async_client_hears_the_same(client: openai.OpenAI) -> None:
    async def speak() -> tuple[bytes, bytes]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="-", max_retries=0, timeout=LONG) as sdk:
            whole = (await sdk.audio.speech.create(**GIVEN, response_format="opus")).content
            async with sdk.audio.speech.with_streaming_response.create(**GIVEN, response_format="opus") as response:
                streamed = b"".join([piece async for piece in response.iter_bytes()])
            return whole, streamed

    whole, streamed = asyncio.run(speak())
    assert whole == streamed
    assert decoded(whole)[0] == "opus"


def test_seconds_are_counted_as_the_model_made_them(
    system: System, client: openai.OpenAI, samples: NDArray[np.int16]
) -> None:
    told = events(client.audio.speech.create(**GIVEN, response_format="pcm", speed=4, stream_format="sse").text)

    assert told[-1]["usage"]["audio_seconds"] == pytest.approx(len(samples) / 24_000)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"voice": "alloy"}, "voice"),
        ({"voice": {"id": "alloy"}}, "voice"),
        ({"voice": {"name": "alloy"}}, "voice"),
        ({"speed": 0.2}, "speed"),
        ({"speed": 5}, "speed"),
        ({"response_format": "vorbis"}, "response_format"),
        ({"stream_format": "websocket"}, "stream_format"),
        ({"instructions": "Whisper."}, "instructions"),
        ({"input": ""}, "input"),
        ({"input": "a" * 4097}, "input"),
        ({"extra_body": {"emotion": "joy"}}, "emotion"),
        ({"voice": "alloy", "stream_format": "sse"}, "voice"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_name(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.audio.speech.create(**{**GIVEN, **fields})

    assert (refusal.value.param or "").split(".")[0] == param


def test_an_unknown_voice_is_answered_with_those_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=VOICE):
        client.audio.speech.create(**{**GIVEN, "voice": "alloy"})


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.audio.speech.create(**{**GIVEN, "model": "tts-1"})


def test_voices_are_listed(system: System) -> None:
    url = f"{system.gateway}/v1/audio/voices"
    listed = httpx.get(url, timeout=LONG).json()
    unknown = httpx.get(url, params={"model": "tts-1"}, timeout=LONG)

    assert listed["object"] == "list"
    assert VOICE in listed["voices"]
    assert [voice["id"] for voice in listed["data"]] == listed["voices"]
    assert unknown.status_code == 404
    assert MODEL in unknown.json()["error"]["message"]
