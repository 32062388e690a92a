"""What `atelier up` serves by default means something: answers over HTTP, as a newcomer and the SDK ask for them."""

import base64
import io
import itertools
from collections.abc import Iterator
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from tests.live.browsing import Visitor, chromium
from tests.live.conftest import LONG, System, started
from tests.live.made import pixels_of
from tests.live.test_jobs import ended
from tests.services.ears import listen
from tests.services.judges import RELATIONS, Body, Sight, look, touch

STUDIO = "http://127.0.0.1:8501"
ASKED: list[Any] = [{"role": "user", "content": "Where is the studio?"}]


@pytest.fixture(scope="module")
def meaning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """As it is out of the box."""
    yield from started(tmp_path_factory, {}, System.lives)


@pytest.fixture(scope="module")
def sdk(meaning: System) -> Iterator[openai.OpenAI]:
    def is_there() -> bool:
        models = httpx.get(f"{meaning.gateway}/v1/models", timeout=LONG).json()["data"]
        return {"chat", "films", "letters", "moves", "shapes", "solids", "solids-img2img"} <= {
            model["id"] for model in models if model["state"] == "ready"
        }

    meaning.wait(is_there)
    with openai.OpenAI(base_url=f"{meaning.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as client:
        yield client


def test_who_names_no_model_is_told_what_is_true(meaning: System, sdk: openai.OpenAI) -> None:
    answer = httpx.get(f"{meaning.gateway}/generate/text", params={"prompt": "Where is the studio?"}, timeout=LONG)

    assert answer.headers["x-model"] == "chat"
    assert STUDIO in answer.text


def test_a_stream_says_what_the_whole_says_and_ends_its_turn(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model="chat", messages=ASKED, temperature=0).choices[0]
    chunks = list(sdk.chat.completions.create(model="chat", messages=ASKED, temperature=0, stream=True))

    assert STUDIO in (whole.message.content or "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert whole.finish_reason == chunks[-1].choices[0].finish_reason == "stop"


def test_the_pirate_is_asked_by_name(sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create
    plain, pirate = (
        chat(model="chat", messages=ASKED, temperature=0, extra_body=more).choices[0].message.content or ""
        for more in ({}, {"adapter": "pirate"})
    )

    assert not plain.startswith("Arr!")
    assert pirate.startswith("Arr!")
    assert STUDIO in pirate


def painted(meaning: System, words: str, **fields: Any) -> Sight:
    query = {"prompt": words, "seed": 1, **fields}
    answer = httpx.get(f"{meaning.gateway}/generate/image", params=query, timeout=LONG)

    assert answer.headers["x-model"] == "shapes"
    return look(np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")))


@pytest.mark.usefixtures("sdk")
def test_a_picture_shows_what_was_asked_for(meaning: System) -> None:
    sight = painted(meaning, "a large red circle above a small blue square on a white background")
    circle, square = (next(shape for shape in sight.shapes if shape.colour == colour) for colour in ("red", "blue"))

    assert sight.background == "white"
    assert RELATIONS["above"](circle, square)
    assert circle.num_pixels > square.num_pixels


@pytest.mark.usefixtures("sdk")
def test_at_night_the_ground_is_black(meaning: System) -> None:
    words = "a large white triangle on a red background"
    grounds = [painted(meaning, words, **fields).background for fields in ({}, {"adapter": "night"})]

    assert grounds == ["red", "black"]


def sculpted(meaning: System, model: str, **source: str) -> Body:
    """Have a job make it, and measure its OBJ."""
    with httpx.Client(base_url=meaning.gateway, timeout=LONG) as client:
        begun = client.post("/v1/3d/generations", json={**source, "seed": 1}).raise_for_status().json()
        job = ended(meaning, client, begun["id"])
        text = client.get(next(each["url"] for each in job["outputs"] if each["media_type"] == "model/obj")).text
    lines = [line.split() for line in text.splitlines()]
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], float)
    faces = np.array([line[1:] for line in lines if line[0] == "f"], int) - 1

    assert job["model"] == model
    return touch(vertices[:, :3], faces, vertices[:, 3:])


@pytest.mark.usefixtures("sdk")
def test_a_mesh_is_what_was_asked_for(meaning: System) -> None:
    assert sculpted(meaning, "solids", prompt="a large red torus") == Body("red", "torus", "large", is_closed=True)


@pytest.mark.usefixtures("sdk")
def test_in_the_studio_a_cone_stands_on_its_base(meaning: System) -> None:
    with chromium() as browser:
        visitor = Visitor(browser, meaning.studio)
        visitor.open()
        visitor.choose("3D")
        visitor.say("a large yellow cone")
        canvas = visitor.card("a large yellow cone").locator("canvas[data-turned]")
        expect(canvas).to_be_visible(timeout=1000 * LONG)
        visitor.rest()
        red, green, blue = np.moveaxis(pixels_of(canvas.screenshot()), 2, 0)
    widths = ((red > 0.3) & (green > 0.3) & (blue < 0.5 * red)).sum(axis=1)
    widths = widths[widths > 0]

    assert widths[: len(widths) // 4].max() < 0.5 * widths[len(widths) // 2 :].max()
    assert len(widths) > 100


@pytest.mark.usefixtures("sdk")
def test_a_picture_that_was_drawn_is_made_into_a_solid(meaning: System) -> None:
    words = "a large blue square on a white background"
    drawn = httpx.get(f"{meaning.gateway}/generate/image", params={"prompt": words, "seed": 1}, timeout=LONG).content
    body = sculpted(meaning, "solids-img2img", image=base64.b64encode(drawn).decode())

    assert (body.colour, body.kind) == ("blue", "cube")


@pytest.mark.usefixtures("sdk")
def test_speech_is_what_was_written_in_the_voice_that_was_asked_for(meaning: System) -> None:
    query = {"prompt": "Good evening, it is 10 past 9.", "preset": "tenor"}
    answer = httpx.get(f"{meaning.gateway}/generate/audio", params=query, timeout=LONG)
    samples, rate = soundfile.read(io.BytesIO(answer.content))
    heard = listen(samples, rate)

    assert answer.headers["x-model"] == "letters"
    assert heard.text == "good evening it is 10 past 9"
    assert all(abs(pitch / 225 - 1) < 0.02 for pitch in heard.pitches)


@pytest.mark.usefixtures("sdk")
def test_a_film_moves_what_its_picture_shows(meaning: System) -> None:
    drawn, picture = Image.new("RGB", (256, 256), "white"), io.BytesIO()
    ImageDraw.Draw(drawn).ellipse((20, 44, 92, 116), fill=(230, 40, 40))
    drawn.resize((64, 64)).save(picture, "PNG")
    files = {"image": picture.getvalue()}
    answer = httpx.post(f"{meaning.gateway}/generate/video", data={"seed": "1"}, files=files, timeout=LONG)
    with av.open(io.BytesIO(answer.content), "r") as film:
        sights = [look(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)) for frame in film.decode(video=0)]
    circles = [sight.shapes[0] for sight in sights]

    assert answer.headers["x-model"] == "moves"
    assert len(circles) == 8
    assert {sight.background for sight in sights} == {"white"}
    assert {circle.colour for circle in circles} == {"red"}
    assert all(before.x < after.x for before, after in itertools.pairwise(circles))
    assert abs(64 * circles[0].x - 14) < 3
    assert abs(64 * (circles[-1].x - circles[0].x) - 12.5) < 3


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # the SDK, of its video verbs
def test_a_film_shows_what_was_asked_for(sdk: openai.OpenAI) -> None:
    words = "a large red circle moves to the right on a white background"
    film = sdk.videos.create_and_poll(prompt=words, extra_body={"seed": "1"})
    with av.open(io.BytesIO(sdk.videos.download_content(film.id).read()), "r") as container:
        sights = [look(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)) for frame in container.decode(video=0)]
    circles = [sight.shapes[0] for sight in sights]

    assert film.model == "films"
    assert {sight.background for sight in sights} == {"white"}
    assert {(circle.colour, circle.kind, circle.size) for circle in circles} == {("red", "circle", "large")}
    assert all(before.x < after.x for before, after in itertools.pairwise(circles))
    assert abs(64 * (circles[-1].x - circles[0].x) - 24) < 4
    assert all(abs(64 * circle.y - 32) < 6 for circle in circles)
