"""What files say about themselves, by what independent readers find; and OpenAI's events around them."""

import base64
import io
import json
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from services.audio.answers import SpeechEncoder, SpeechEvents
from services.audio.schema import Format
from services.engine.events import Done, Preview, Progress, Queued, Started
from services.engine.outputs import Sound
from services.errors import GenerationFailed
from services.image.answers import DocumentEncoder, PictureEncoder, PictureEvents
from services.image.schema import ImageJob, chosen
from services.provenance import SOURCE_TYPE, Provenance
from services.schema import MAX_SEED

PICTURE = np.arange(16 * 8 * 3, dtype=np.uint8).reshape(16, 8, 3)
SOUND = Sound(np.zeros(24_000, np.float32), 24_000)
DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def job(**fields: Any) -> ImageJob:
    given = {"prompt": "a secret cat", "negative_prompt": "dogs", "size": "8x16", "guidance_scale": 1.5}
    return ImageJob.model_construct(**{**given, "num_inference_steps": 2, **fields})


def provenance(seed: int = 3, **parameters: Any) -> Provenance:
    return Provenance('mo"del<&>', "tiny:größe", seed, parameters)


def xmp_of(file: bytes) -> dict[str, str]:
    packet = file[file.index(b"<x:xmpmeta") : file.index(b"</x:xmpmeta>") + len(b"</x:xmpmeta>")]
    found = ElementTree.fromstring(packet.decode()).find(f".//{DESCRIPTION}")  # noqa: S314 - ours
    assert found is not None
    return dict(found.attrib)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_says_what_made_it_and_not_what_was_asked(output_format: Any) -> None:
    asked = job(output_format=output_format, scheduler="euler")
    file = PictureEncoder(asked, provenance(**chosen(asked))).add(PICTURE)
    said = xmp_of(file)
    with Image.open(io.BytesIO(file)) as picture:
        described = picture.getexif().get(270) or " ".join(map(str, picture.info.values()))

    assert said[IPTC] == SOURCE_TYPE
    assert (said["{urn:atelier:provenance:1#}Model"], said["{urn:atelier:provenance:1#}Seed"]) == ('mo"del<&>', "3")
    assert json.loads(said["{urn:atelier:provenance:1#}Parameters"]) == {
        "size": "8x16", "guidance_scale": 1.5, "num_inference_steps": 2, "scheduler": "euler",
    }  # fmt: skip
    assert "AI-generated" in described
    assert b"secret" not in file
    assert b"dogs" not in file


@pytest.mark.parametrize("form", ["mp3", "opus", "flac", "aac", "wav"])
def test_a_sound_says_what_made_it(form: Format) -> None:
    encoder = SpeechEncoder(form, 1.0, provenance(voice="v2/en_speaker_1"))
    file = encoder.add(SOUND) + encoder.close(Done())
    if form == "wav":
        with soundfile.SoundFile(io.BytesIO(file)) as reader:
            said = reader.copy_metadata()["comment"]
    else:
        with av.open(io.BytesIO(file), "r") as container:
            said = json.dumps({**container.metadata, **container.streams.audio[0].metadata}, ensure_ascii=False)

    for word in ("AI-generated", "tiny:gr", "v2/en_speaker_1", "3"):
        assert word in said


def test_seeds_count_on_from_the_requests_and_begin_anew_at_the_last() -> None:
    document = DocumentEncoder(PictureEncoder(job(), provenance(MAX_SEED)), job())
    for _ in range(3):
        document.add(PICTURE)
    told = json.loads(document.close(Done({"images": 3})))
    files = [base64.b64decode(picture["b64_json"]) for picture in told["data"]]

    assert [picture["seed"] for picture in told["data"]] == [MAX_SEED, 0, 1]
    assert [xmp_of(file)["{urn:atelier:provenance:1#}Seed"] for file in files] == [str(MAX_SEED), "0", "1"]


def test_a_stream_of_a_picture_says_nothing_before_there_is_something_to_see() -> None:
    events = PictureEvents(PictureEncoder(job(), provenance()), job(), "image_edit")

    assert [events.tell(event) for event in (Queued(1), Started(), Progress(1, 4))] == [b"", b"", b""]
    assert events.tell(Preview(2, PICTURE)).startswith(b"event: image_edit.partial_image\ndata: {")
    assert events.tell(Progress(3, 4)) == b": 3/4\n\n"  # a comment
    assert events.add(PICTURE) == b""
    assert events.close(Done()).endswith(b"\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("is_picture", [True, False])
def test_a_stream_that_fails_ends_with_an_error_as_the_sdk_reads_it(is_picture: bool) -> None:
    stream = (
        PictureEvents(PictureEncoder(job(), provenance()), job(), "image_generation")
        if is_picture
        else SpeechEvents(SpeechEncoder("mp3", 1.0, provenance()))
    )
    frame = stream.tell(GenerationFailed("no"))

    assert frame.startswith(b"data: ")
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "generation_failed"
    assert b"[DONE]" not in frame
