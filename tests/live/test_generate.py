"""Each of the book's routes, its output opened by other software than what wrote it."""

import io
from urllib.parse import unquote

import av
import httpx
import numpy as np
import pytest
import soundfile
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals

from tests.live.pictures import png


def film(client: httpx.Client, **fields: str) -> httpx.Response:
    return client.post("/generate/video", files={"image": ("a.png", png())}, data=fields)


def test_text_is_text(client: httpx.Client) -> None:
    response = client.get("/generate/text", params={"prompt": "Who are you?", "seed": 1, "temperature": 0.5})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-model"] == "tinyllama-1.1b-chat"
    assert response.headers["x-seed"] == "1"
    assert len(response.text) > 10


@pytest.mark.parametrize("preset", [None, "v2/en_speaker_1"])
def test_audio_is_sound_of_each_sentence(client: httpx.Client, preset: str | None) -> None:
    def seconds(prompt: str) -> float:
        params = {"prompt": prompt, "seed": "1"} | ({"preset": preset} if preset else {})
        response = client.get("/generate/audio", params=params)
        assert response.status_code == 200
        assert response.headers["content-type"] == "audio/wav"
        samples, rate = soundfile.read(io.BytesIO(response.content))
        assert rate == 24_000
        assert samples.ndim == 1
        assert np.abs(samples).max() > 0.001
        return float(len(samples) / rate)

    # A tiny checkpoint's sentence is 0.4 to 1.2 seconds long, whatever it says.
    assert 0.3 < seconds("One sentence.") < 1.3
    assert seconds("One. Two. Three. Four.") > 1.2


def test_image_is_a_picture_of_the_size_asked_for(client: httpx.Client) -> None:
    response = client.get("/generate/image", params={"prompt": "a red circle", "size": "128x64"})
    assert response.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.format, picture.size, picture.mode) == ("PNG", (128, 64), "RGB")
    assert np.asarray(picture).std() > 1


def test_the_outside_image_server_is_the_image_worker(client: httpx.Client) -> None:
    params = {"prompt": "a red circle", "seed": "4"}
    direct = client.get("/generate/image", params=params)
    outside = client.get("/generate/bentoml/image", params=params)
    assert direct.content == outside.content


@pytest.mark.parametrize("num_frames", [2, 7, 25])
def test_video_is_a_film_that_browsers_play(client: httpx.Client, num_frames: int) -> None:
    response = film(client, num_frames=str(num_frames))
    assert response.status_code == 200
    assert response.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(response.content), "r") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width % 2, stream.height % 2) == (0, 0)
        assert stream.average_rate == 7
    assert len(frames) == num_frames
    assert frames[0].std() > 1


def test_video_has_as_many_frames_as_its_model_makes_unless_told_otherwise(client: httpx.Client) -> None:
    with av.open(io.BytesIO(film(client).content), "r") as container:
        assert len(list(container.decode(video=0))) == 25


def test_video_arrives_while_it_is_decoded(client: httpx.Client) -> None:
    files, data = {"image": ("a.png", png())}, {"num_frames": "25"}
    with client.stream("POST", "/generate/video", files=files, data=data) as response:
        chunks = list(response.iter_raw())
    assert "content-length" not in response.headers
    assert len(chunks) > 3


def test_3d_is_a_closed_coloured_mesh_to_save(client: httpx.Client) -> None:
    prompt = 'a "chair"; größe/../世界\r\n'.strip()
    response = client.get("/generate/3d", params={"prompt": prompt, "num_inference_steps": 4})
    assert response.status_code == 200
    assert response.headers["content-type"] == "model/obj"
    kind, plain, extended = response.headers["content-disposition"].split("; ")
    assert (kind, plain) == ("attachment", 'filename="a chair groe.obj"')
    assert unquote(extended) == "filename*=UTF-8''a chair größe .. 世界.obj"
    mesh = trimesh.load(io.BytesIO(response.content), file_type="obj", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    assert len(mesh.faces) > 100
    assert mesh.is_watertight
    assert isinstance(mesh.visual, ColorVisuals)
    assert len(np.unique(mesh.visual.vertex_colors, axis=0)) > 10


@pytest.mark.parametrize(
    ("route", "params"),
    [
        ("text", {"prompt": "Tell me"}),
        ("audio", {"prompt": "Tell me. Now."}),
        ("image", {"prompt": "a tree"}),
        ("3d", {"prompt": "a tree"}),
        ("video", {"num_frames": "5"}),
    ],
)
def test_a_seed_gives_the_same_bytes_and_another_seed_others(
    client: httpx.Client, route: str, params: dict[str, str]
) -> None:
    def bytes_of(seed: str) -> bytes:
        if route == "video":
            response = film(client, **params, seed=seed)
        else:
            response = client.get(f"/generate/{route}", params={**params, "seed": seed})
        assert response.status_code == 200
        assert response.headers["x-seed"] == seed
        return response.content

    first = bytes_of("11")
    assert first == bytes_of("11")
    assert first != bytes_of("12")


def test_without_a_seed_results_differ_and_name_the_seed_that_repeats_them(client: httpx.Client) -> None:
    one, other = (client.get("/generate/image", params={"prompt": "a tree"}) for _ in range(2))
    assert one.content != other.content
    again = client.get("/generate/image", params={"prompt": "a tree", "seed": one.headers["x-seed"]})
    assert again.content == one.content
