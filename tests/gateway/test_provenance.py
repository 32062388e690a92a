"""What a file says about itself is read back from every format that workers write, and no file is too much."""

import io
import json
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import httpx
import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.provenance.containers import format_of
from gateway.provenance.statement import Statement, statement_of
from services.audio.answers import SpeechEncoder
from services.audio.schema import Format
from services.encoders import Encoder, GifEncoder, GlbEncoder, Mp4Encoder, ObjEncoder, PlyEncoder, WebpEncoder
from services.engine.events import Done
from services.engine.outputs import Mesh, Sound
from services.finals import Files, FilmFiles, MeshFiles, SoundFiles
from services.image.answers import PictureEncoder
from services.image.schema import ImageJob
from services.media import jpeg
from services.provenance import Provenance
from tests.gateway.conftest import Gateway, Workers, error_of
from tests.gateway.test_keys import Start, bearer, create

PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
SOUND = Sound(np.linspace(-0.5, 0.5, 9_000, dtype=np.float32), 24_000)
MESH = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), np.ones((3, 3), np.float32))
SAID = Statement(
    model='mo"del<&>', revision="tiny:größe", seed=2**53 - 1, parameters={"size": "16x16", "fps": 7, "n": 1.5}
)
PROVENANCE = Provenance(SAID.model, SAID.revision, SAID.seed, SAID.parameters)


def encoded(encoder: Encoder, *outputs: Any) -> bytes:
    return b"".join([*map(encoder.add, outputs), encoder.close(Done())])


def finished(files: Files, *outputs: Any) -> Iterator[tuple[str, bytes]]:
    for output in outputs:
        files.add(output)
    for file in files.close(Done()):
        yield file.variant, b"".join(file.pieces)
    files.abort()


@cache
def written() -> dict[str, bytes]:
    """One of every file that workers write, by what it is called here."""
    found: dict[str, bytes] = {}
    for form in ("png", "jpeg", "webp"):
        job = ImageJob(prompt="a", size="64x64", num_inference_steps=1, guidance_scale=1, output_format=form)
        found[form] = encoded(PictureEncoder(job, PROVENANCE), PICTURE)
    for sound in get_args(Format):
        if sound != "pcm":
            found[sound] = encoded(SpeechEncoder(sound, 1.0, PROVENANCE), SOUND, SOUND)
            [(_, found[f"{sound} of a job"])] = finished(SoundFiles(SpeechEncoder(sound, 2.0, PROVENANCE)), SOUND)
    films: list[Encoder] = [Mp4Encoder(7, PROVENANCE), GifEncoder(7, PROVENANCE), WebpEncoder(7, PROVENANCE)]
    found |= {film.media_type + ", film": encoded(film, PICTURE, PICTURE) for film in films}
    for film in ("mp4", "gif", "webp"):
        for variant, file in finished(FilmFiles(7, 2, PROVENANCE, film), PICTURE, PICTURE):
            found[f"{variant} of a job, {film}"] = file
    for mesh in (ObjEncoder, GlbEncoder, PlyEncoder):
        found[mesh.media_type] = encoded(mesh(PROVENANCE), MESH)
    found |= {f"{variant} of a job": file for variant, file in finished(MeshFiles(PROVENANCE), MESH)}
    return found


def read(data: bytes) -> Statement | None:
    form = format_of(data)
    return None if form is None else statement_of(data, form)


def check(client: httpx.Client, file: bytes, **options: Any) -> httpx.Response:
    return client.post("/v1/content_provenance_checks", files={"file": file}, **options)


def test_every_file_says_where_it_comes_from() -> None:
    read_back = {name: read(file) for name, file in written().items()}

    assert read_back == dict.fromkeys(read_back, SAID)
    assert len(read_back) == 3 + 10 + 3 + 9 + 3 + 5


def test_the_sdk_reads_what_a_file_says(shared: tuple[Gateway, Workers]) -> None:
    with openai.OpenAI(base_url=f"{shared[0].url}/v1", api_key="-", max_retries=0) as sdk:
        image, sound, film, foreign = (
            sdk.content_provenance_checks.create(file=file)
            for file in (written()["png"], written()["mp3"], written()["video/mp4, film"], jpeg.encode(PICTURE))
        )

    assert (image.object, [each.type for each in image.results]) == (
        "content_provenance_check",
        ["metadata", "c2pa", "synthid"],
    )
    assert [each.outcome for each in image.results] == ["detected", "not_detected", "not_detected"]
    ours: Any = image.results[0]
    assert (ours.issuer, ours.model, ours.revision, ours.seed) == ("Atelier", SAID.model, SAID.revision, SAID.seed)
    assert ours.parameters == SAID.parameters
    assert [each.type for each in sound.results] == ["metadata", "synthid"]
    assert [each.type for each in film.results] == ["metadata"]
    assert [each.outcome for each in foreign.results] == ["not_detected"] * 3
    assert foreign.results[0].model is None


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(written())), st.data())
def test_a_file_that_was_spoilt_is_read_or_not_and_no_more(name: str, data: st.DataObject) -> None:
    file = bytearray(written()[name])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(file), 3_000) - 1))
        file[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    cut = data.draw(st.integers(0, len(file)))
    found = read(bytes(file[:cut] if data.draw(st.booleans()) else file))

    assert found is None or json.dumps(found.model_dump(), allow_nan=False)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.sampled_from([file[:12] for file in written().values()]), st.binary(max_size=300))
def test_any_bytes_behind_a_head_are_no_error(head: bytes, rest: bytes) -> None:
    read(head + rest)


@pytest.mark.parametrize(
    "said",
    [
        "AI-generated: " + "[" * 50_000,
        'AI-generated: {"model": "a", "revision": "b", "seed": 1e999}',
        "AI-generated: {}",
        'AI-generated: {"model": "a", "revision": "b", "seed": 1, "x": NaN}',
    ],
)
def test_what_only_looks_like_ours_is_none(client: httpx.Client, said: str) -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "GIF", comment=said)
    answer = check(client, file.getvalue())

    assert answer.status_code == 200
    assert answer.json()["results"][0]["outcome"] == "not_detected"


def test_what_cannot_be_looked_at_is_refused(client: httpx.Client) -> None:
    route = "/v1/content_provenance_checks"
    refused = [
        check(client, b""),
        check(client, b"%PDF-1.7"),
        check(client, written()["png"], data={"model": "a"}),
        client.post(route, json={"file": "a"}),
        client.post(route, data={"file": "a"}),
        client.post(route, files={"file": ("a", b"a"), "other": ("a", b"a")}),
        client.post(route, content=b"--x\r\nno", headers={"content-type": "multipart/form-data; boundary=x"}),
    ]

    assert [(each.status_code, error_of(each)["param"]) for each in refused] == [(400, "file")] * 7
    assert check(client, bytes(25_100_000)).status_code == 413


def test_a_file_with_countless_parts_is_not_read_to_its_end(client: httpx.Client) -> None:
    parts = b"\x89PNG\r\n\x1a\n" + bytes(12) * 2_000_000
    answer = check(client, parts)

    assert answer.json()["results"][0]["outcome"] == "not_detected"


def test_any_key_will_do_and_one_is_needed(start: Start) -> None:
    gateway = start()
    admin = create(gateway, scopes=["admin"])["key"]
    key = create(gateway, admin, scopes=["text"])["key"]

    assert check(gateway.client, written()["png"]).status_code == 401
    assert check(gateway.client, written()["png"], headers=bearer(key)).status_code == 200


def test_xmp_alone_is_enough(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG", xmp=PROVENANCE.xmp)
    answer = check(client, file.getvalue())

    assert read(file.getvalue()) == SAID
    assert answer.json()["results"][0]["seed"] == SAID.seed
