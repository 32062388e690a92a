"""Whole files of a generation, by what independent readers find in them, over a real socket where that matters."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from services.audio.answers import SpeechEncoder
from services.encoders import Encoder, EventEncoder, GlbEncoder, ObjEncoder, PlyEncoder, TurntableEncoder
from services.engine.events import Done
from services.engine.outputs import Mesh, Sound
from services.finals import PIECE, Files, FilmFiles, FinalEvents, MeshFiles, OneFile, SoundFiles, cut
from services.image.answers import PictureFiles
from services.media import ply
from services.responses import chosen, negotiated, wants_final
from services.schema import FINAL_EVENTS
from tests.services.encoding import PROVENANCE, png_encoder, wav_encoder

MAX_LENGTHS = 32  # bytes in the head of a sound, which are not known while it is made
DONE = Done({"frames": 3.0})
SILENCE = Sound(np.zeros(24_000, np.float32), 24_000)


def events(stream: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def sent(files: Files, *outputs: Any) -> dict[str, tuple[str, bytes]]:
    """Read the files as a job does: checked against what is said of them."""
    encoder = FinalEvents(files)
    try:
        stream = b"".join([*map(encoder.add, outputs), *encoder.rest(DONE)])
    finally:
        encoder.abort()
    found: dict[str, tuple[str, bytes]] = {}
    content = b""
    *told, last = events(stream)
    heard = b"".join(base64.b64decode(data["b64"]) for name, data in told if name == "sound")
    for name, data in told:
        if name == "sound":
            continue
        if name == "output":
            piece = base64.b64decode(data["b64"], validate=True)
            assert 0 < len(piece) <= PIECE
            content += piece
        else:
            assert name == "file"
            assert (data["bytes"], data["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            assert data["variant"] not in found
            found[data["variant"]] = (data["media_type"], content)
            content = b""
    assert content == b""
    for _, file in found.values() if heard else ():
        assert len(heard) <= len(file)
        assert sum(a != b for a, b in zip(heard, file, strict=False)) <= MAX_LENGTHS
    assert last == ("done", {"finish_reason": "stop", "usage": {"frames": 3.0}})
    return found


def moving(num_frames: int, height: int = 48, width: int = 64) -> list[np.ndarray[Any, Any]]:
    """Grey that gets brighter, with noise, which does not compress."""
    noise = np.random.default_rng(0)
    return [
        (noise.integers(0, 40, (height, width, 3)) + nth * 200 // num_frames).astype(np.uint8)
        for nth in range(num_frames)
    ]


# --- films ---


@given(num_frames=st.integers(1, 40), frame_rate=st.sampled_from([1, 7, 16, 30]))
@settings(deadline=None, max_examples=12)
def test_a_film_begins_with_its_index_and_lasts_as_long_as_its_frames(num_frames: int, frame_rate: int) -> None:
    media_type, film = sent(FilmFiles(frame_rate, num_frames), *moving(num_frames))["video"]

    boxes, rest = [], film
    while rest:
        boxes.append(rest[4:8])
        rest = rest[int.from_bytes(rest[:4], "big") :]
    assert media_type == "video/mp4"
    assert [box for box in boxes if box != b"free"] == [b"ftyp", b"moov", b"mdat"]
    with av.open(io.BytesIO(film), "r") as container:
        stream = container.streams.video[0]
        assert stream.frames == num_frames
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == pytest.approx(num_frames / frame_rate, abs=1e-6)
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([nth / frame_rate for nth in range(num_frames)], abs=1e-3)


def test_a_film_can_be_entered_anywhere() -> None:
    frames = moving(60)
    _, film = sent(FilmFiles(10, 60), *frames)["video"]

    with av.open(io.BytesIO(film), "r") as container:
        for second in (5, 1, 3):
            container.seek(second * av.time_base)
            landed = next(container.decode(video=0))
            assert second - 2 < landed.time <= second
            nth = round(landed.time * 10)
            assert np.abs(landed.to_ndarray(format="rgb24").mean() - frames[nth].mean()) < 5


def test_a_film_has_a_thumbnail_and_a_sheet_of_frames_in_even_steps() -> None:
    shades = [np.full((90, 160, 3), 4 * nth, np.uint8) for nth in range(61)]
    files = sent(FilmFiles(7, 61), *shades)

    assert set(files) == {"video", "thumbnail", "spritesheet"}
    assert {files[variant][0] for variant in ("thumbnail", "spritesheet")} == {"image/jpeg"}
    with Image.open(io.BytesIO(files["thumbnail"][1])) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (160, 90))
        assert np.asarray(thumbnail).max() <= 2
    with Image.open(io.BytesIO(files["spritesheet"][1])) as sheet:
        assert sheet.size == (640, 360)
        tiles = np.asarray(sheet).reshape(4, 90, 4, 160, 3).mean(axis=(1, 3, 4)).ravel()
    assert tiles == pytest.approx(np.linspace(0, 240, 16), abs=4)


def test_of_few_frames_the_sheet_shows_all() -> None:
    files = sent(FilmFiles(7, 2), *moving(2))

    with Image.open(io.BytesIO(files["spritesheet"][1])) as sheet:
        assert sheet.size == (128, 48)


FILMING = """
import resource
import numpy as np
from services.engine.events import Done
from services.finals import FilmFiles, FinalEvents

def film(num_frames):
    for _ in range(num_frames):
        encoder.add(noise.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

noise = np.random.default_rng(0)
encoder = FinalEvents(FilmFiles(30, 135))
before = film(45)
film(90)
print(sum(map(len, encoder.rest(Done()))), 1024 * (film(0) - before))
"""


def test_memory_does_not_grow_with_the_film() -> None:
    ended = subprocess.run([sys.executable, "-c", FILMING], capture_output=True, text=True, check=True)
    num_bytes, growth = map(int, ended.stdout.split())

    assert num_bytes > 7_000_000
    assert growth < num_bytes / 3


# --- meshes ---


def mesh_of(shape: Any) -> Mesh:
    vertices = np.asarray(shape.vertices, np.float32)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    colours = ((vertices - low) / (high - low)).astype(np.float32)
    return Mesh(vertices, np.asarray(shape.faces), colours)


def encoded(encoder: Encoder, mesh: Mesh) -> bytes:
    return encoder.add(mesh) + encoder.close(DONE)


BOX: Any = trimesh.creation.box((1, 2, 4))
SPHERE: Any = trimesh.creation.icosphere(subdivisions=3)


def read(file: bytes, kind: str) -> Any:
    return trimesh.load(io.BytesIO(file), file_type=kind, process=False)


def test_a_mesh_is_the_same_in_every_format() -> None:
    mesh = mesh_of(BOX)
    files = sent(MeshFiles(), mesh)

    assert {variant: media_type for variant, (media_type, _) in files.items()} == {
        "glb": "model/gltf-binary",
        "obj": "model/obj",
        "ply": "model/ply",
        "points": "model/ply",
        "preview": "image/gif",
    }
    for variant in ("obj", "ply"):
        found = read(files[variant][1], variant)
        assert found.is_watertight
        assert found.volume == pytest.approx(8)
        assert np.array_equal(found.faces, mesh.faces)
        assert np.allclose(found.vertices, mesh.vertices)
        assert np.allclose(found.visual.vertex_colors[:, :3] / 255, mesh.colours, atol=1 / 255)


def test_a_glb_stands_upright_in_linear_colours() -> None:
    mesh = mesh_of(SPHERE)
    scene = read(encoded(GlbEncoder(), mesh), "glb")
    (found,) = scene.geometry.values()

    assert scene.bounds[1] == pytest.approx([1, 1, 1], abs=0.02)
    assert np.allclose(found.vertices, mesh.vertices)
    assert np.array_equal(found.faces, mesh.faces)
    assert np.allclose(found.vertex_normals, mesh.vertices, atol=0.02)
    srgb = np.where(mesh.colours <= 0.04045, mesh.colours / 12.92, ((mesh.colours + 0.055) / 1.055) ** 2.4)
    assert np.allclose(found.visual.vertex_attributes["color"], srgb, atol=1e-6)
    (box,) = read(encoded(GlbEncoder(), mesh_of(BOX)), "glb").dump()  # with its place in the scene
    assert box.extents == pytest.approx([1, 4, 2])  # z, the longest, points up: y, in this format
    assert box.vertices[:, 1] == pytest.approx(BOX.vertices[:, 2])


def test_points_lie_on_the_surface_as_densely_everywhere() -> None:
    mesh = mesh_of(BOX)
    points = read(ply.encode_points(mesh.vertices, mesh.faces, mesh.colours), "ply")

    assert len(points.vertices) == 16_384
    reach = np.abs(points.vertices) / (BOX.extents / 2)
    assert reach.max(axis=1) == pytest.approx(1, abs=1e-5)
    shares = np.bincount(reach.argmax(axis=1)) / len(points.vertices)
    assert shares == pytest.approx(np.array([2 * 4, 1 * 4, 1 * 2]) / 14, abs=0.02)
    assert np.allclose(points.colors[:, :3] / 255, (points.vertices - BOX.bounds[0]) / BOX.extents, atol=1 / 255)


def frames_of(file: bytes) -> list[np.ndarray[Any, Any]]:
    with Image.open(io.BytesIO(file)) as gif:
        assert (gif.format, gif.info["loop"]) == ("GIF", 0)
        found = []
        for nth in range(gif.n_frames):  # type: ignore[attr-defined] # of a GIF there is
            gif.seek(nth)
            found.append(np.asarray(gif.convert("RGB")).astype(int))
        return found


def test_a_preview_turns_the_mesh_once_around() -> None:
    mesh = mesh_of(trimesh.creation.box((0.4, 2, 0.4)))  # a beam along y
    frames = frames_of(encoded(TurntableEncoder(), mesh))

    is_drawn = [(frame < 250).any(axis=2) for frame in frames]
    widths = [np.ptp(np.flatnonzero(drawn.any(axis=0))) for drawn in is_drawn]
    quarter = len(frames) // 4
    assert len(frames) == 20
    assert min(widths) in (widths[0], widths[2 * quarter])  # seen from its end
    assert widths[quarter] == pytest.approx(max(widths), abs=2)  # and from its side
    assert widths[quarter] > 3 * widths[0]
    assert all(0.02 < drawn.mean() < 0.5 for drawn in is_drawn)


def test_a_preview_shows_what_is_in_front_and_has_no_holes() -> None:
    shape: Any = trimesh.util.concatenate([SPHERE, trimesh.creation.icosphere(subdivisions=3, radius=0.4)])
    inner = len(SPHERE.vertices)
    colours = np.tile(np.array([0, 0, 1], np.float32), (len(shape.vertices), 1))
    colours[inner:] = (1, 0, 0)
    mesh = Mesh(np.asarray(shape.vertices, np.float32), np.asarray(shape.faces), colours)

    for frame in frames_of(encoded(TurntableEncoder(), mesh)):
        red, _, blue = np.moveaxis(frame, 2, 0)
        down, across = np.mgrid[:192, :192]
        from_middle = np.hypot(down - 95.5, across - 95.5)
        inside, outside = from_middle < 85, from_middle > 93
        assert (frame[outside] > 250).all()
        assert (red[inside] < 20).all()  # the small one is within the large one
        assert (blue[inside] > 60).all()
        assert blue[95, 95] > blue[inside].min() + 50  # lit from where one looks


def test_a_mesh_without_extent_is_no_error() -> None:
    flat = Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]), np.zeros((3, 3), np.float32))

    assert len(sent(MeshFiles(), flat)) == 5


# --- sound, pictures, text ---


def test_a_wav_says_how_long_it_is() -> None:
    samples = np.linspace(-1, 1, 300_000, dtype=np.float32)
    files = sent(SoundFiles(wav_encoder()), Sound(samples[:100], 24_000), Sound(samples[100:], 24_000))

    ((variant, (media_type, file)),) = files.items()
    assert (variant, media_type) == ("audio", "audio/wav")
    assert int.from_bytes(file[4:8], "little") == len(file) - 8
    data = file.index(b"data")
    assert int.from_bytes(file[data + 4 : data + 8], "little") == len(file) - data - 8 == 600_000
    found, rate = soundfile.read(io.BytesIO(file))
    assert rate == 24_000
    assert np.allclose(found, samples, atol=1e-4)
    assert b"AI-generated" in file[:data]


@pytest.mark.parametrize(("form", "media_type"), [("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("flac", "audio/flac")])
def test_other_sounds_are_files_of_their_own_kind(form: Any, media_type: str) -> None:
    ((variant, (found, file)),) = sent(SoundFiles(SpeechEncoder(form, 1.0, PROVENANCE)), SILENCE, SILENCE).items()

    assert (variant, found) == ("audio", media_type)
    with av.open(io.BytesIO(file), "r") as container:
        heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert heard == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_a_flac_says_how_long_it_is(speed: float) -> None:
    samples = np.linspace(-1, 1, 48_000, dtype=np.float32)
    encoder = SpeechEncoder("flac", speed, PROVENANCE)
    ((_, file),) = sent(SoundFiles(encoder), Sound(samples, 24_000)).values()
    with soundfile.SoundFile(io.BytesIO(file)) as reader:
        assert (reader.samplerate, reader.channels) == (24_000, 1)
        assert reader.frames == len(reader.read()) == pytest.approx(48_000 / speed, abs=2_000)


def test_no_sound_at_all_is_no_file() -> None:
    assert sent(SoundFiles(wav_encoder())) == {}


def test_every_picture_is_a_file_with_its_own_seed() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 300, 400, 3), dtype=np.uint8)
    files = sent(PictureFiles(png_encoder()), *pictures)

    assert list(files) == ["image", "image-2"]
    for (media_type, file), picture, seed in zip(files.values(), pictures, (3, 4), strict=True):
        assert media_type == "image/png"
        assert len(file) > PIECE  # came in several
        with Image.open(io.BytesIO(file)) as found:
            assert np.array_equal(np.asarray(found), picture)
            assert found.info["Seed"] == str(seed)


def test_what_is_whole_already_is_a_file() -> None:
    mesh = mesh_of(BOX)

    assert sent(OneFile("answer", ObjEncoder()), mesh) == {"answer": ("model/obj", encoded(ObjEncoder(), mesh))}


@given(sizes=st.lists(st.integers(0, 3 * PIECE), max_size=4))
@settings(deadline=None, max_examples=20)
def test_pieces_are_cut_to_size(sizes: list[int]) -> None:
    pieces = list(cut([os.urandom(1) * size for size in sizes]))

    assert all(len(piece) == PIECE for piece in pieces[:-1])
    assert sum(map(len, pieces)) == sum(sizes)
    assert all(pieces)


# --- freeing, and choosing ---


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda: FilmFiles(7, 3), moving(1)[0]),
        (lambda: SoundFiles(wav_encoder()), Sound(np.zeros(9, np.float32), 24_000)),
    ],
    ids=["film", "sound"],
)
@pytest.mark.parametrize("stage", ["unused", "half", "closing", "closed"])
def test_nothing_stays_open_wherever_it_ends(make: Any, output: Any, stage: str) -> None:
    before = open_files()
    encoder = FinalEvents(make())
    if stage != "unused":
        encoder.add(output)
    rest = encoder.rest(DONE)
    if stage == "closing":
        next(rest)
    if stage == "closed":
        list(rest)

    encoder.abort()
    encoder.abort()

    assert open_files() == before
    assert encoder.add(output) == b""
    assert list(rest) == []


def asking(accept: str) -> Request:
    return Request({"type": "http", "headers": [(b"accept", accept.encode())]})


@pytest.mark.parametrize(
    ("accept", "is_final"),
    [
        (FINAL_EVENTS, True),
        ("Text/Event-Stream;Final=1", True),
        ("text/plain, text/event-stream; q=0.9; final=1", False),
        ("text/event-stream", False),
        ("text/event-stream; final=0", False),
        ("application/json, text/event-stream; final=1", False),
        ("text/event-stream, text/plain; final=1", False),
        ("", False),
    ],
)
def test_files_come_to_who_asks_for_them(accept: str, is_final: bool) -> None:
    request = asking(accept)
    assert wants_final(request) is is_final
    assert isinstance(negotiated(request, ObjEncoder(), None, MeshFiles), FinalEvents) is is_final
    assert not isinstance(negotiated(request, ObjEncoder()), FinalEvents)


def test_events_without_files_stay_what_they_were() -> None:
    assert isinstance(negotiated(asking("text/event-stream"), ObjEncoder(), None, MeshFiles), EventEncoder)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("model/gltf-binary", GlbEncoder),
        ("model/ply", PlyEncoder),
        ("image/gif", TurntableEncoder),
        ("model/obj", ObjEncoder),
        ("application/json", ObjEncoder),
        ("*/*", ObjEncoder),
    ],
)
def test_a_mesh_comes_in_the_format_that_is_named(accept: str, kind: type[Encoder]) -> None:
    encoder = chosen(asking(accept), (ObjEncoder, GlbEncoder, PlyEncoder, TurntableEncoder))

    assert type(encoder) is kind
