"""The studio in a real browser: every modality made and downloaded, and what goes wrong said."""

import io
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped] # it ships no types
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, ViewportSize, WebSocket, expect

from tests.live.browsing import INVITATIONS, LONG, Visitor, chromium
from tests.live.conftest import MODELS_FILE, TASKS, System, free_ports, started
from tests.live.made import (
    body_of,
    film_differs,
    frames_of,
    heard,
    hue_of_mesh,
    hue_on,
    loudness,
    picture_differs,
    pixels_of,
    sound_of,
    wait_for,
)
from tests.live.pictures import png
from tests.live.test_crash import serving_process

Visit = Callable[[System], Visitor]
NUMBERS = count(1)
NARROW: ViewportSize = {"width": 375, "height": 800}  # of a small telephone
NAMES = {"text": "Text", "image": "Image", "audio": "Speech", "video": "Video", "mesh": "3D"}
TIMES = ("first_byte_seconds", "response_seconds", "run_seconds")
PARTS = ("Label", "Value")  # of a number that is shown


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started_browser:
        yield started_browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Give browsers to visitors; none of them may have asked for anything from elsewhere."""
    visitors: list[Visitor] = []

    def come(system: System) -> Visitor:
        visitors.append(Visitor(browser, system.studio))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.context.close()
        assert visitor.foreign == []


@pytest.fixture(scope="module")
def locked(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, str]]:
    """Another gateway that wants keys, before the same workers but for one that is not there; with its admin's key."""
    key_file = tmp_path_factory.mktemp("key") / "admin.key"
    workers = {f"ATELIER_{task.upper()}_URL": system.worker(task) for task in TASKS}
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    own = {"ATELIER_ADMIN_KEY_FILE": str(key_file), "ATELIER_MODELS_FILE": str(MODELS_FILE)}
    settings = {**workers, "ATELIER_MESH_URL": nowhere, **own}
    for running in started(tmp_path_factory, settings, System.lives):
        yield running, key_file.read_text().strip()


def words(of: str) -> str:
    """Words that nobody else asks for, and that are in no seed and no job's id."""
    return f"{of} number x{next(NUMBERS)}x"


def begun_slowly(client: httpx.Client, visitor: Visitor, size: str = "1024x576", steps: int = 200, n: int = 4) -> str:
    """Begin a picture that takes a minute and more, and look at it."""
    asked = words("a slow picture")
    body = {"prompt": asked, "size": size, "num_inference_steps": steps, "n": n}
    assert client.post("/v1/images/generations", json=body, headers={"prefer": "respond-async"}).status_code == 202
    visitor.open()
    visitor.choose("Image")
    expect(visitor.card(asked)).to_contain_text(re.compile(r"Step \d+ of \d+"), timeout=LONG)
    return asked


def test_options_are_what_is_asked_for(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor = visit(system)
    asked = words("a small picture")
    visitor.open()
    visitor.choose("Image")
    visitor.set("Denoising steps", "7")
    visitor.say(asked)
    expect(visitor.card(asked).get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)

    job = next(job for job in client.get("/v1/jobs").json()["data"] if job["prompt"] == asked)
    assert job["asked"]["num_inference_steps"] == 7


def test_a_list_stays_open_while_jobs_end(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor = visit(system)
    asked = begun_slowly(client, visitor)
    size = visitor.page.get_by_label("Size", exact=True)
    size.click()
    wanted = visitor.page.get_by_role("option", name="256x256", exact=True)
    expect(wanted).to_be_visible()
    job = next(job for job in client.get("/v1/jobs").json()["data"] if job["prompt"] == asked)
    client.post(f"/v1/jobs/{job['id']}/cancel")
    expect(visitor.card(asked)).to_contain_text("Cancelled.", timeout=LONG)
    visitor.settle()

    wanted.click()
    expect(size).to_have_value("256x256")


def asked_of_text(client: httpx.Client, since: str) -> list[dict[str, Any]]:
    """The newest rows of the usage log for texts."""
    found: list[dict[str, Any]] = client.get("/v1/usage", params={"modality": "text", "since": since}).json()["data"]
    return found


def test_text_is_written_and_downloaded(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor, since = visit(system), datetime.now(UTC).isoformat()
    visitor.open()
    visitor.say("Tell me a story")
    expect(visitor.page.get_by_text(re.compile(r"seed \d+ · \d+ tokens · first word after"))).to_be_visible(
        timeout=LONG
    )
    answer = visitor.page.get_by_test_id("stChatMessage").last.get_by_test_id("stText").inner_text()
    system.wait(lambda: bool(asked_of_text(client, since)))
    assert [row["ending"] for row in asked_of_text(client, since)] == ["complete"]  # what came whole is no failure

    text = visitor.download(visitor.page.locator("body"), "Text").decode()
    assert text.startswith("user: Tell me a story\n\nassistant: ")
    assert answer.split()[0] in text


def test_a_conversation_outlives_the_page_and_no_other_browser_sees_it(system: System, visit: Visit) -> None:
    visitors = {words("Tell me a story"): visit(system) for _ in range(2)}
    for visitor in visitors.values():
        visitor.open()
    for asked, visitor in visitors.items():  # both are written at the same time
        visitor.say(asked)
    for asked, visitor in visitors.items():
        expect(visitor.page.get_by_text(re.compile(r"\d+ tokens"))).to_be_visible(timeout=LONG)
        visitor.open()
        expect(visitor.page.get_by_text(re.compile(r"\d+ tokens"))).to_be_visible(timeout=LONG)
        expect(visitor.page.get_by_test_id("stChatMessage")).to_have_count(2)
        expect(visitor.page.get_by_test_id("stChatMessage").first).to_contain_text(asked)
        assert urlsplit(visitor.page.url).query == ""


def made(client: httpx.Client, asked: str) -> dict[str, Any]:
    """The newest job of those words, with its files' contents by variant."""
    job: dict[str, Any] = next(job for job in client.get("/v1/jobs").json()["data"] if job["prompt"] == asked)
    return {**job, "files": {each["variant"]: client.get(each["url"]).content for each in job["outputs"]}}


def made_in(visitor: Visitor, modality: str, of: str) -> tuple[str, Locator]:
    """Have something made; return its words and its card, as soon as it is there."""
    asked = words(of)
    visitor.open()
    visitor.choose(modality)
    visitor.say(asked)
    card = visitor.card(asked)
    expect(card).to_contain_text(re.compile(r"seed \d+ · \d+\.\d s"), timeout=LONG)
    return asked, card


def test_a_picture_is_shown_as_it_was_made(system: System, visit: Visit, client: httpx.Client) -> None:
    asked, card = made_in(visit(system), "Image", "a boat")

    assert picture_differs(card.locator("img"), made(client, asked)["files"]["image"]) == 0


def test_a_speech_is_played_as_it_was_made(system: System, visit: Visit, client: httpx.Client) -> None:
    asked, card = made_in(visit(system), "Speech", "a boat")
    seconds, loud = sound_of(made(client, asked)["files"]["audio"])
    expect(card.get_by_role("button", name="MP3")).to_be_visible(timeout=LONG)

    heard_seconds, heard_loud = heard(card.locator("audio"))
    assert heard_seconds == pytest.approx(seconds, abs=0.2)
    assert heard_loud == pytest.approx(loud, rel=0.2)
    assert min(seconds, loud) > 0


def test_speech_of_samples_alone_is_played_on_both_pages(system: System, visit: Visit, client: httpx.Client) -> None:
    asked = words("a boat")
    said = {"input": asked, "response_format": "pcm"}
    assert client.post("/v1/audio/speech", json=said, headers={"prefer": "respond-async"}).status_code == 202
    system.wait(lambda: made(client, asked)["status"] == "completed")
    samples = np.frombuffer(made(client, asked)["files"]["audio"], "<i2").astype(float)
    seconds, loud = len(samples) / 24_000, loudness(samples / 2**15)
    visitor = visit(system)
    visitor.open()
    visitor.choose("Speech")
    player = visitor.card(asked).locator("audio")
    for _ in range(2):
        heard_seconds, heard_loud = heard(player)
        assert heard_seconds == pytest.approx(seconds, abs=0.01)
        assert heard_loud == pytest.approx(loud, rel=0.2)
        assert player.evaluate("player => player.duration") == pytest.approx(seconds, abs=0.01)
        player.evaluate(TO_THE_END)
        visitor.open("/gallery")
        player = visitor.page.locator("[class*='st-key-tile-']").filter(has_text=asked).locator("audio")
    assert min(seconds, loud) > 0


def test_speech_is_downloaded_as_samples_alone(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor = visit(system)
    asked, card = made_in(visitor, "Speech", "a boat")
    card.get_by_role("button", name="Other formats").click()
    samples = visitor.download(visitor.page.get_by_test_id("stPopoverBody"), "PCM")

    seconds, _ = sound_of(made(client, asked)["files"]["audio"])
    assert len(samples) / 2 / 24_000 == pytest.approx(seconds, abs=0.2)


def test_a_film_is_played_as_it_was_made(system: System, visit: Visit, client: httpx.Client) -> None:
    asked, card = made_in(visit(system), "Video", "a boat")

    assert film_differs(card.locator("video"), made(client, asked)["files"]["video"]) < 0.03


@pytest.mark.parametrize(
    ("modality", "files"),
    [
        ("Image", {"PNG": ("image", rb"\x89PNG\r\n\x1a\n")}),
        ("Speech", {"MP3": ("audio", rb"ID3")}),
        (
            "Video",
            {
                "MP4": ("video", rb"....ftyp"),
                "Thumbnail": ("thumbnail", rb"\xff\xd8\xff"),
                "Sprite sheet": ("spritesheet", rb"\xff\xd8\xff"),
            },
        ),
        (
            "3D",
            {
                "GLB": ("glb", rb"glTF\x02\x00\x00\x00"),
                "OBJ": ("obj", rb"(#[^\n]*\n)*v "),
                "PLY": ("ply", rb"ply\n"),
                "Points (PLY)": ("points", rb"ply\n"),
                "Turning (GIF)": ("preview", rb"GIF89a"),
            },
        ),
    ],
)
def test_what_was_made_is_downloaded_as_it_is(
    system: System, visit: Visit, client: httpx.Client, modality: str, files: dict[str, tuple[str, bytes]]
) -> None:
    visitor = visit(system)
    asked, card = made_in(visitor, modality, "a boat")
    expect(card.get_by_role("button", name=next(iter(files)), exact=True)).to_be_visible(timeout=LONG)
    job = made(client, asked)
    assert {variant for variant, _ in files.values()} <= set(job["files"])

    for button, (variant, begins) in files.items():
        content = visitor.download(card, button)
        assert re.match(begins, content, re.DOTALL), (button, content[:16])
        assert content == job["files"][variant], button


@pytest.mark.parametrize(
    ("modality", "files"),
    [
        ("Image", {"WEBP": rb"RIFF....WEBP", "JPG": rb"\xff\xd8\xff"}),
        ("Speech", {"WAV": rb"RIFF....WAVE", "FLAC": rb"fLaC", "OPUS": rb"OggS", "AAC": rb"(ID3.{7,4000}?)?\xff\xf1"}),
        ("Video", {"GIF": rb"GIF89a", "WEBP": rb"RIFF....WEBP"}),
    ],
)
def test_other_formats_are_downloaded_and_nothing_is_made_or_counted_again(
    system: System, visit: Visit, client: httpx.Client, modality: str, files: dict[str, bytes]
) -> None:
    visitor = visit(system)
    visitor.page.set_viewport_size({"width": 1200, "height": 2000})  # the list moves out of a small one with its button
    asked, card = made_in(visitor, modality, "a boat")
    formats = card.get_by_role("button", name="Other formats")
    expect(formats).to_be_visible(timeout=LONG)
    job = made(client, asked)
    before = made_so_far(client)
    formats.click()
    for button, begins in files.items():
        content = visitor.download(visitor.page.get_by_test_id("stPopoverBody"), button)
        assert re.match(begins, content, re.DOTALL), (button, content[:16])
        assert resembles(content, job["files"]), button
        said = client.post("/v1/content_provenance_checks", files={"file": content}).json()["results"][0]
        assert (said["model"], said["seed"]) == (job["model"], job["seed"])

    assert made_so_far(client) == before


def resembles(content: bytes, files: Mapping[str, bytes]) -> bool:
    """Whether another format, decoded, has what was made."""
    if "audio" in files:
        seconds, loud = sound_of(content)
        wanted, _ = sound_of(files["audio"])
        return abs(seconds - wanted) < 0.2 and loud > 0
    if "video" in files:
        with Image.open(io.BytesIO(content)) as film:
            return (film.size, getattr(film, "n_frames", 1)) == (
                size_of(files["video"]),
                len(frames_of(files["video"])),
            )
    seen, wanted_pixels = pixels_of(content), pixels_of(files["image"])
    return seen.shape == wanted_pixels.shape and float(np.abs(seen - wanted_pixels).mean()) < 0.05


def size_of(film: bytes) -> tuple[int, int]:
    """The width and the height of a film."""
    height, width, _ = frames_of(film)[0].shape
    return width, height


def made_so_far(client: httpx.Client) -> list[dict[str, float]]:
    """The units of all that was asked for."""
    found = client.get("/v1/usage", params={"modality": "image,audio,video", "limit": 1000}).json()["data"]
    return [row["units"] for row in found]


def test_speech_plays_while_it_is_made_and_goes_on_when_it_is_whole(
    system: System, visit: Visit, client: httpx.Client
) -> None:
    visitor = visit(system)
    asked = words("a tale") + "." + " It goes on and on." * 40
    visitor.open()
    visitor.choose("Speech")
    visitor.say(asked)
    player = visitor.card(asked).locator("audio")
    expect(player).to_be_visible(timeout=LONG)
    wait_for(player, "player => !player.paused && player.currentTime > 0")
    [job] = [job for job in client.get("/v1/jobs").json()["data"] if job["prompt"] == asked]
    assert job["status"] == "in_progress"

    begun = player.element_handle()
    expect(visitor.card(asked).get_by_role("button", name="MP3")).to_be_visible(timeout=LONG)
    assert player.evaluate("(player, begun) => player === begun && !player.error", begun)


TO_THE_END = """player => new Promise(reached => {
    player.addEventListener("ended", reached);
    player.currentTime = player.duration - 0.1;
    player.play();
})"""
STRANGERS = """() => {
    window.strangers = [];
    const look = () => {
        for (const card of document.querySelectorAll("[class*='st-key-card-']")) {
            const job = card.className.match(/st-key-card-(\\S+)/)[1];
            for (const button of card.querySelectorAll("[class*='st-key-again-'], [class*='st-key-cancel-']"))
                if (!button.className.includes(job)) window.strangers.push(`${button.innerText} in ${card.innerText}`);
        }
    };
    new MutationObserver(look).observe(document.body, {childList: true, subtree: true, attributes: true});
}"""  # keeps what a card has of another job's, be it for an instant


def test_speeches_that_were_heard_are_silent_when_one_comes_back(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.choose("Speech")
    for asked in [words("a boat") for _ in range(2)]:
        visitor.say(asked)
        wait_for(visitor.card(asked).locator("audio"), "player => player.autoplay && player.currentTime > 0")
    visitor.choose("Image")
    visitor.choose("Speech")
    expect(visitor.card(asked).locator("audio")).to_be_visible(timeout=LONG)
    visitor.rest()

    for player in visitor.page.locator("audio").all():
        assert player.evaluate("player => player.paused && !player.autoplay")


def test_no_job_is_ever_shown_with_the_buttons_of_another(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.choose("Image")
    visitor.page.evaluate(STRANGERS)
    for asked in [words("a boat") for _ in range(3)]:
        visitor.say(asked)
        expect(visitor.card(asked).get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)
    visitor.choose("Video")
    visitor.choose("Image")

    assert visitor.page.evaluate("window.strangers") == []


MANY = 20  # meshes; browsers give a page 16 contexts of WebGL
AS_MADE = "0.60 0.30 3.00"  # how a mesh is turned, and how far away
GROUND = "canvas => getComputedStyle(canvas).backgroundColor"
CONTEXTS = """
    window.contexts = [];
    const given = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, ...others) {
        const context = given.call(this, kind, ...others);
        if (kind === "webgl") window.contexts.push(context);
        return context;
    };
"""  # keeps what a page draws meshes with


def test_a_mesh_is_seen_in_its_colours_and_turns_under_the_mouse_the_wheel_and_the_keys(
    system: System, visit: Visit, client: httpx.Client
) -> None:
    visitor = visit(system)
    asked, card = made_in(visitor, "3D", "a chair")
    canvas = card.locator("canvas")
    expect(canvas).to_have_attribute("data-turned", "0.60 0.30 3.00", timeout=LONG)
    canvas.scroll_into_view_if_needed()

    wanted = hue_of_mesh(made(client, asked)["files"]["glb"])
    assert np.abs(wanted - wanted.mean()).max() > 0.3  # it is of some colour, and not grey
    assert np.abs(hue_on(canvas) - wanted).max() < 0.2  # one side of it is seen, and each is a little different
    body = body_of(canvas)
    assert 0.02 < body.mean() < 0.9
    assert not any(edge.any() for edge in (body[0], body[-1], body[:, 0], body[:, -1]))  # it is seen as a whole
    visitor.page.mouse.move(*middle(canvas))
    visitor.page.mouse.wheel(0, -400)
    nearer = after(canvas, "0.60 0.30 3.00")
    assert nearer.mean() > 1.2 * body.mean()

    turned = str(canvas.get_attribute("data-turned"))
    visitor.page.mouse.down()
    visitor.page.mouse.move(10, 10)
    visitor.page.mouse.up()
    dragged = after(canvas, turned)
    assert (dragged != nearer).mean() > 0.005

    turned = str(canvas.get_attribute("data-turned"))
    for _ in range(5):
        canvas.press("ArrowRight")
    assert (after(canvas, turned) != dragged).mean() > 0.005


def test_however_many_meshes_there_are_each_is_seen_and_stays_as_it_was_turned(
    system: System, visit: Visit, client: httpx.Client
) -> None:
    begun, small = [], {"grid_size": 16, "num_inference_steps": 2}
    for _ in range(MANY):
        body = {"prompt": words("a chair"), **small}
        begun.append(client.post("/v1/3d/generations", json=body, headers={"prefer": "respond-async"}).json()["id"])
    system.wait(lambda: all(client.get(f"/v1/jobs/{each}").json()["status"] == "completed" for each in begun))
    visitor = visit(system)
    visitor.open()
    visitor.choose("3D")
    canvases = visitor.page.locator("canvas")
    for shown in range(5, MANY, 5):
        expect(canvases).to_have_count(shown, timeout=LONG)
        visitor.page.get_by_role("button", name="Show more").click()
    expect(canvases).to_have_count(MANY, timeout=LONG)
    visitor.settle()
    first = canvases.first
    expect(first).to_have_attribute("data-turned", AS_MADE, timeout=LONG)
    first.press("ArrowRight")
    before = after(first, AS_MADE)

    for canvas in [*canvases.all(), first]:
        canvas.scroll_into_view_if_needed()
        expect(canvas).to_have_attribute("data-turned", re.compile(" 0.30 3.00$"), timeout=LONG)
        assert 0.02 < body_of(canvas).mean() < 0.9
    expect(first).to_have_attribute("data-turned", "0.75 0.30 3.00")
    assert (body_of(first) == before).mean() > 0.99


def test_a_mesh_turns_on_in_another_theme_and_when_the_browser_took_its_context(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.page.add_init_script(CONTEXTS)
    _, card = made_in(visitor, "3D", "a chair")
    canvas = card.locator("canvas")
    canvas.scroll_into_view_if_needed()
    expect(canvas).to_have_attribute("data-turned", AS_MADE, timeout=LONG)
    canvas.press("ArrowRight")
    expect(canvas).to_have_attribute("data-turned", "0.75 0.30 3.00")
    light = canvas.evaluate(GROUND)
    visitor.page.emulate_media(color_scheme="dark")
    visitor.page.wait_for_function(
        f"([canvas, light]) => ({GROUND})(canvas) !== light", arg=[canvas.element_handle(), light]
    )
    canvas.press("ArrowRight")
    expect(canvas).to_have_attribute("data-turned", "0.90 0.30 3.00")
    before = body_of(canvas)

    visitor.page.evaluate("contexts.at(-1).getExtension('WEBGL_lose_context').loseContext()")
    for _ in range(5):
        canvas.press("ArrowRight")
    expect(canvas).to_have_attribute("data-turned", "1.65 0.30 3.00")
    turned = body_of(canvas)
    assert 0.02 < turned.mean() < 0.9
    assert (turned != before).mean() > 0.005


def middle(place: Locator) -> tuple[float, float]:
    """Where the mouse has to be."""
    box = place.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def after(canvas: Locator, turned: str) -> NDArray[np.bool_]:
    """What is seen of a mesh as soon as it is not turned so any more."""
    expect(canvas).not_to_have_attribute("data-turned", turned)
    return body_of(canvas)


def test_a_picture_is_attached_animated_made_3d_and_made_again(system: System, visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "mine.png"
    file.write_bytes(png())
    asked = words("mine")
    visitor = visit(system)
    visitor.open()
    visitor.choose("Image")
    visitor.say(asked, file)
    expect(visitor.card(asked).get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)
    visitor.card(asked).get_by_role("button", name="Again with another seed").click()
    expect(visitor.cards(asked)).to_have_count(2, timeout=LONG)

    visitor.card(asked).get_by_role("button", name="Animate this image").click()
    expect(visitor.card("From a picture").locator("video")).to_be_visible(timeout=LONG)
    visitor.choose("Image")
    visitor.card(asked).get_by_role("button", name="Make this 3D").click()
    expect(visitor.card("From a picture").locator("canvas")).to_be_visible(timeout=LONG)


def test_a_picture_comes_by_way_of_sketches(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor = visit(system)
    asked = begun_slowly(client, visitor, "256x256", 100, 1)

    expect(visitor.card(asked).get_by_text("a sketch, on the way")).to_be_visible(timeout=LONG)
    expect(visitor.card(asked).get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)


def test_a_job_outlives_the_page_and_is_seen_by_another_browser_which_cancels_it(
    system: System, visit: Visit, client: httpx.Client
) -> None:
    visitor, other = visit(system), visit(system)
    asked = begun_slowly(client, visitor)
    for each in (visitor, other):  # the first one loads its page again
        each.open()
        each.choose("Image")
        expect(each.card(asked)).to_contain_text(re.compile(r"Step \d+ of \d+, about \d+ s left"), timeout=LONG)
    other.card(asked).get_by_role("button", name="Cancel").click()

    for each in (visitor, other):
        expect(each.card(asked)).to_contain_text("Cancelled.", timeout=LONG)
    job = next(job for job in client.get("/v1/jobs").json()["data"] if job["prompt"] == asked)
    assert job["status"] == "cancelled"


def test_the_page_is_not_frozen_while_something_is_made(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor = visit(system)
    asked = begun_slowly(client, visitor)
    visitor.choose("Text")
    visitor.say("Hello")
    expect(visitor.page.get_by_text(re.compile(r"\d+ tokens"))).to_be_visible(timeout=LONG)
    visitor.choose("Image")
    visitor.card(asked).get_by_role("button", name="Cancel").click()
    expect(visitor.card(asked)).to_contain_text("Cancelled.", timeout=LONG)


def test_a_worker_that_is_killed_is_said_to_be_away_and_the_work_goes_on_when_it_is_back(
    system: System, visit: Visit, client: httpx.Client
) -> None:
    visitor = visit(system)
    asked = begun_slowly(client, visitor, "256x256", 40, 1)
    os.kill(serving_process(system, "image").pid, signal.SIGKILL)

    card = visitor.card(asked)
    expect(card).to_contain_text("The job waits until it is back; nothing is lost.", timeout=LONG)
    expect(card.get_by_role("button", name="PNG")).to_be_visible(timeout=3 * LONG)


def test_what_is_said_of_a_worker_that_is_away_goes_when_it_is_back(system: System, visit: Visit) -> None:
    visitor = visit(system)
    os.kill(serving_process(system, "text").pid, signal.SIGKILL)
    away = visitor.page.get_by_text(re.compile(r"tinyllama-1\.1b-chat: (its worker does not answer|loading)\."))
    give_up_at = monotonic() + LONG / 1000
    while not away.count():
        assert monotonic() < give_up_at
        visitor.open()
        visitor.rest()

    expect(away).to_have_count(0, timeout=2 * LONG)  # and nobody touches the page
    visitor.say(words("hello"))
    expect(visitor.page.get_by_text(re.compile("in all$"))).to_be_visible(timeout=LONG)


def test_all_can_be_done_with_the_keyboard(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    keyboard, asked = visitor.page.keyboard, words("a boat")
    reach(visitor, "Text")
    keyboard.press("ArrowRight")
    if not visitor.page.get_by_label(re.compile("^Describe a picture")).is_visible():
        keyboard.press("Enter")
    expect(visitor.page.get_by_label(re.compile("^Describe a picture"))).to_be_visible(timeout=LONG)
    visitor.settle()
    reach(visitor, "Describe a picture, or attach one and say what becomes of it")
    keyboard.type(asked)
    keyboard.press("Enter")
    card = visitor.card(asked)
    expect(card.get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)

    reach_button(visitor, card.get_by_role("button", name="Other formats"))
    keyboard.press("Enter")
    other = visitor.page.get_by_test_id("stPopoverBody").get_by_role("button", name="WEBP")
    expect(other).to_be_visible()
    reach_button(visitor, other)
    with visitor.page.expect_download() as waiting:
        keyboard.press("Enter")
    with Image.open(waiting.value.path()) as found:
        assert found.format == "WEBP"


def test_who_chooses_with_the_keyboard_goes_on_from_what_was_chosen(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.rest()
    keyboard = visitor.page.keyboard
    reach(visitor, "Text")
    for key, modality in [("Right", "Image"), ("Left", "Text"), ("Right", "Image"), ("Right", "Speech")]:
        keyboard.press(f"Arrow{key}")
        keyboard.press("Enter")
        expect(visitor.page.get_by_label(re.compile(INVITATIONS[modality]))).to_be_visible(timeout=LONG)
        visitor.settle()
        visitor.rest()
        expect(visitor.page.get_by_role("radio", name=modality)).to_be_focused()
    keyboard.press("Tab")

    expect(visitor.page.get_by_label(re.compile(INVITATIONS["Speech"]))).to_be_focused()


def test_what_is_made_is_cancelled_with_the_keyboard(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor = visit(system)
    card = visitor.card(begun_slowly(client, visitor))
    reach_button(visitor, card.get_by_role("button", name="Cancel"))
    visitor.page.keyboard.press("Enter")

    expect(card).to_contain_text("Cancelled.", timeout=LONG)


def reach_button(visitor: Visitor, button: Locator) -> None:
    """Press Tab until a button has the focus."""
    for _ in range(100):
        visitor.page.keyboard.press("Tab")
        if button.evaluate("button => button.contains(document.activeElement)"):
            return
    raise AssertionError("it cannot be reached")


def reach(visitor: Visitor, name: str) -> None:
    """Press Tab until what has that name has the focus."""
    for _ in range(100):
        visitor.page.keyboard.press("Tab")
        if visitor.page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText") == name:
            return
    raise AssertionError(f"{name} cannot be reached")


@pytest.mark.parametrize("path", ["/", "/gallery", "/usage", "/models", "/access", "/key"])
def test_whatever_can_be_used_has_a_name_for_screen_readers(system: System, visit: Visit, path: str) -> None:
    visitor = visit(system)
    visitor.open(path)
    for modality in INVITATIONS if path == "/" else [""]:
        if modality:
            visitor.choose(modality)
        visitor.rest()
        tree = visitor.page.locator("body").aria_snapshot()
        states = r"(?: \[[^\]]*\])*"
        fields = rf"^ *- (?:button|link|textbox|combobox|spinbutton|radio|progressbar|searchbox){states}(?::.*)?$"
        pictures = rf"^ *- img{states}$"  # a chart is told by its words, and named around them
        assert re.findall(f"{fields}|{pictures}", tree, re.MULTILINE) == [], tree


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/gallery", "/usage", "/models", "/access", "/key"])
def test_nobody_is_shut_out(system: System, visit: Visit, path: str, scheme: Literal["light", "dark"]) -> None:
    """By axe-core's rules: colours that cannot be told apart, names and roles that are missing."""
    visitor = visit(system)
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.open(path)
    for modality in INVITATIONS if path == "/" else [""]:
        if modality:
            visitor.choose(modality)
        visitor.rest()
        found = Axe().run(visitor.page).response["violations"]
        grave = {
            (each["id"], node["html"])
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        }
        assert grave == set()


def test_the_gallery_finds_shows_and_deletes(system: System, visit: Visit, client: httpx.Client) -> None:
    asked = words("a very rare thing")
    body = {"prompt": asked}
    job_id = client.post("/v1/images/generations", json=body, headers={"prefer": "respond-async, wait=30"}).json()["id"]
    visitor = visit(system)
    visitor.open("/gallery")
    visitor.page.get_by_label("Search").fill(asked.upper())
    visitor.page.get_by_label("Search").press("Enter")
    expect(visitor.page.get_by_text("1 found", exact=True)).to_be_visible()
    view = visitor.page.get_by_role("button", name="View")
    expect(view).to_have_count(1, timeout=LONG)
    view.click()
    dialog = visitor.page.get_by_role("dialog")
    assert visitor.download(dialog, "PNG").startswith(b"\x89PNG")
    dialog.get_by_role("button", name="Delete").click()

    expect(visitor.page.get_by_text("Nothing is here yet, or nothing fits the search.")).to_be_visible(timeout=LONG)
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404


def find(visitor: Visitor, asked: str) -> Locator:
    """Search the gallery for the one thing that fits, and return it."""
    visitor.open("/gallery")
    visitor.page.get_by_label("Search").fill(asked)
    visitor.page.get_by_label("Search").press("Enter")
    expect(visitor.page.get_by_text("1 found", exact=True)).to_be_visible(timeout=LONG)
    tile = visitor.page.locator("[class*='st-key-tile-']")
    expect(tile).to_have_count(1, timeout=LONG)
    return tile


def test_a_chain_goes_by_its_words_and_all_its_pictures_are_there(
    system: System, visit: Visit, client: httpx.Client
) -> None:
    asked, later = words("a large red circle"), words("a small blue square")
    steps = [
        {"route": "/v1/images/generations", "body": {"prompt": asked}},
        {"route": "/v1/images/edits", "body": {"prompt": later}},
    ]
    chain = client.post("/v1/jobs", json={"steps": steps}, headers={"prefer": "respond-async, wait=50"}).json()
    outputs = client.get(f"/v1/jobs/{chain['id']}").json()["outputs"]
    visitor = visit(system)
    find(visitor, later).get_by_role("button", name="View").click()
    dialog = visitor.page.get_by_role("dialog")
    expect(dialog.locator("img")).to_have_count(2, timeout=LONG)
    for number, (label, output) in enumerate(zip(("PNG of step 1", "PNG"), outputs, strict=True)):
        content = client.get(output["url"]).content
        assert picture_differs(dialog.locator("img").nth(number), content) == 0
        assert visitor.download(dialog, label) == content


def test_a_film_of_a_picture_of_words_goes_by_these(system: System, visit: Visit, client: httpx.Client) -> None:
    asked = words("a large green circle")
    steps = [{"route": "/v1/images/generations", "body": {"prompt": asked}}, {"route": "/v1/videos", "body": {}}]
    client.post("/v1/jobs", json={"steps": steps}, headers={"prefer": "respond-async, wait=50"})

    expect(find(visit(system), asked)).to_contain_text(asked)


def test_a_text_that_a_job_wrote_is_in_the_gallery(system: System, visit: Visit, client: httpx.Client) -> None:
    bodies: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
        "chat/completions": lambda asked: {"messages": [{"role": "user", "content": asked}]},
        "completions": lambda asked: {"prompt": asked},
        "responses": lambda asked: {"input": asked},
    }
    for kind, (route, body_with) in zip(("talk", "tale", "reply"), bodies.items(), strict=True):
        asked = words(kind)
        job = client.post(f"/v1/{route}", json=body_with(asked), headers={"prefer": "respond-async, wait=50"}).json()
        answer = client.get(f"/v1/jobs/{job['id']}/content").json()
        choice = answer["choices"][0] if "choices" in answer else answer["output"][0]["content"][0]
        written = choice["message"]["content"] if "message" in choice else choice["text"]
        visitor = visit(system)
        tile = find(visitor, asked)
        expect(tile.get_by_test_id("stText").first).to_contain_text(written.split()[0])
        tile.get_by_role("button", name="View").click()
        dialog = visitor.page.get_by_role("dialog")
        expect(dialog.get_by_text(written, exact=True)).to_be_visible(timeout=LONG)
        assert json.loads(visitor.download(dialog, "JSON")) == answer


def test_from_the_gallery_one_goes_on_in_the_studio(system: System, visit: Visit, client: httpx.Client) -> None:
    asked = words("a rare boat")
    client.post("/v1/images/generations", json={"prompt": asked}, headers={"prefer": "respond-async, wait=30"})
    visitor = visit(system)
    visitor.open()
    visitor.choose("Speech")
    visitor.page.get_by_role("link", name="Gallery").click()
    visitor.page.get_by_label("Search").fill(asked)
    visitor.page.get_by_label("Search").press("Enter")
    view = visitor.page.get_by_role("button", name="View")
    expect(view).to_have_count(1, timeout=LONG)
    view.click()
    visitor.page.get_by_role("dialog").get_by_role("button", name="Animate this image").click()

    expect(visitor.page.get_by_label(re.compile(INVITATIONS["Video"]))).to_be_visible(timeout=LONG)
    expect(visitor.card("From a picture").locator("video")).to_be_visible(timeout=LONG)


def test_words_that_are_refused_are_given_back(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    for modality, asked, reason in (
        ("Image", "word " * 500, "must have at most 2000 characters"),
        ("Text", "word " * 4000, "shorten it"),
    ):
        visitor.choose(modality)
        visitor.say(asked)
        expect(visitor.page.get_by_test_id("stAlert").first).to_contain_text(reason, timeout=LONG)
        expect(visitor.page.get_by_test_id("stChatInputTextArea")).to_have_value(asked.strip(), timeout=LONG)
    visitor.choose("Image")
    visitor.say("   ")
    expect(visitor.page.get_by_test_id("stAlert").first).to_contain_text("Nothing was written.", timeout=LONG)


@pytest.mark.parametrize(
    ("modality", "option"),
    [
        ("Image", "Denoising steps"),
        ("Speech", "Speed"),
        ("3D", "Denoising steps"),
        ("Text", "Tokens at most"),
    ],
)
def test_words_that_are_refused_are_given_back_each_time(
    system: System, visit: Visit, modality: str, option: str
) -> None:
    visitor, asked = visit(system), words("one thing")
    visitor.open()
    visitor.choose(modality)
    visitor.set(option, "x")
    visitor.say(asked)
    field = visitor.page.get_by_test_id("stChatInputTextArea")
    for end in ("", " ", ""):  # a field takes nothing twice in a row
        expect(field).to_have_value(f"{asked}{end}", timeout=LONG)
        expect(field).to_be_focused()
        field.press("Enter")


@pytest.mark.parametrize(
    ("modality", "option", "value"),
    [
        ("Image", "Denoising steps", "500"),
        ("Image", "Seed: the same one gives the same result", "-5"),
        ("Image", "Seed: the same one gives the same result", "9007199254740993"),
        ("Image", "Guidance: how close to the words", "99"),
        ("Image", "Pictures", "0"),
        ("Text", "Tokens at most", "0"),
        ("Speech", "Speed", "9"),
        ("Video", "Frames", "5000"),
        ("3D", "Grid: how fine", "1.5"),
        ("3D", "Grid: how fine", "many"),
    ],
)
def test_a_number_that_cannot_be_is_refused_and_no_other_goes_in_its_place(
    system: System, visit: Visit, client: httpx.Client, modality: str, option: str, value: str
) -> None:
    visitor, asked = visit(system), words("much")
    visitor.open()
    visitor.choose(modality)
    visitor.set(option, "1")
    visitor.set(option, value)
    visitor.say(asked)

    expect(visitor.page.get_by_test_id("stAlert").first).to_be_visible(timeout=LONG)
    expect(visitor.page.get_by_test_id("stChatInputTextArea")).to_have_value(asked, timeout=LONG)
    assert asked not in [job["prompt"] for job in client.get("/v1/jobs").json()["data"]]


def test_words_never_go_without_the_picture_that_was_attached(
    system: System, visit: Visit, client: httpx.Client, tmp_path: Path
) -> None:
    visitor, asked, file = visit(system), words("much"), tmp_path / "large.png"
    file.write_bytes(png() + bytes(26_000_000))
    visitor.open()
    larger, both = r"is larger than .* Attach the picture again, or another one\.", "words or from a picture, not from"
    for modality, said in (("Image", larger), ("Video", both), ("3D", both)):
        visitor.choose(modality)
        visitor.say(asked, file)
        expect(visitor.page.get_by_test_id("stAlert").first).to_contain_text(re.compile(said), timeout=LONG)
        expect(visitor.page.get_by_test_id("stChatInputTextArea")).to_have_value(asked, timeout=LONG)

    assert asked not in [job["prompt"] for job in client.get("/v1/jobs").json()["data"]]


def test_a_text_can_be_stopped_and_what_was_written_stays(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.set("Tokens at most", "1800")
    visitor.say(words("Tell me a long story"))
    answer = visitor.page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stText")
    expect(answer).not_to_be_empty(timeout=LONG)
    visitor.page.get_by_role("button", name="Stop", exact=True).click()
    for _ in range(2):
        stopped = re.compile(r"seed \d+ · first word after .* · stopped before its end")
        expect(visitor.page.get_by_text(stopped)).to_be_visible(timeout=LONG)
        visitor.open()
    expect(visitor.page.get_by_test_id("stChatMessage")).to_have_count(2)


@pytest.mark.parametrize("screen", [{"width": 1280, "height": 720}, NARROW], ids=["wide", "narrow"])
def test_a_text_can_be_stopped_where_its_end_is_read(system: System, visit: Visit, screen: ViewportSize) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.set("Tokens at most", "1900")
    visitor.page.set_viewport_size(screen)
    visitor.say(words("Tell me a long story"))
    text = visitor.page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stText")
    wait_for(text, "text => text.clientHeight > innerHeight")
    visitor.page.get_by_test_id("stChatInputTextArea").scroll_into_view_if_needed()
    text.evaluate("text => text.scrollIntoView({block: 'end'})")
    stop = visitor.page.get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_in_viewport(ratio=1)
    stop.click()
    expect(visitor.page.get_by_text(re.compile("stopped before its end"))).to_be_visible(timeout=LONG)


def test_a_text_goes_on_over_a_reload_and_on_another_page(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.set("Tokens at most", "1900")
    visitor.say(words("Tell me a long story"))
    answer = visitor.page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stText")
    expect(answer).not_to_be_empty(timeout=LONG)
    visitor.page.get_by_role("link", name="Gallery").click()
    expect(visitor.page.get_by_role("heading", name="Gallery")).to_be_visible(timeout=LONG)
    visitor.page.get_by_role("link", name="Studio").click()
    visitor.open()

    expect(visitor.page.get_by_text(re.compile(r"seed \d+ · 1900 tokens · first word after"))).to_be_visible(
        timeout=LONG
    )
    expect(visitor.page.get_by_test_id("stChatMessage")).to_have_count(2)


def test_options_stay_as_they_are_on_other_pages(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.choose("Image")
    for value in ("7", "9", ""):
        visitor.set("Denoising steps", value)
        visitor.settle()
        visitor.page.get_by_role("link", name="Gallery").click()
        expect(visitor.page.get_by_role("heading", name="Gallery")).to_be_visible(timeout=LONG)
        visitor.page.get_by_role("link", name="Studio").click()
        expect(visitor.page.get_by_label(re.compile(INVITATIONS["Image"]))).to_be_visible(timeout=LONG)
        expect(visitor.page.get_by_label("Denoising steps", exact=True)).to_have_value(value)


@pytest.mark.parametrize("pressed", [0, 150], ids=["tapped", "pressed"])  # milliseconds before it is let go
def test_what_is_clicked_right_after_an_option_was_written_is_seen_and_the_option_is_kept(
    system: System, visit: Visit, pressed: float
) -> None:
    visitor = visit(system)
    page = visitor.page
    asked, _ = made_in(visitor, "Image", "a boat")
    cards, steps = visitor.cards(asked), page.get_by_label("Denoising steps", exact=True)
    expect(cards.get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)
    steps.fill("3")
    cards.get_by_role("button", name="Again with another seed").click(delay=pressed)
    expect(cards.get_by_role("button", name="PNG")).to_have_count(2, timeout=LONG)
    expect(steps).to_have_value("3")
    visitor.settle()
    steps.fill("4")
    cards.first.get_by_role("button", name="Delete").click(delay=pressed)
    expect(cards).to_have_count(1, timeout=LONG)
    visitor.settle()
    steps.fill("5")
    cards.get_by_role("button", name="Make this 3D").click(delay=pressed)
    expect(page.get_by_label(re.compile(INVITATIONS["3D"]))).to_be_visible(timeout=LONG)
    visitor.settle()
    visitor.choose("Image")
    expect(steps).to_have_value("5")
    visitor.settle()
    steps.fill("6")
    page.get_by_test_id("stButtonGroup").get_by_text("Text", exact=True).click(delay=pressed)
    expect(page.get_by_label(re.compile(INVITATIONS["Text"]))).to_be_visible(timeout=LONG)
    expect(cards).to_have_count(0, timeout=LONG)
    visitor.say("Tell me a story")
    expect(page.get_by_text(re.compile(r"seed \d+ · \d+ tokens"))).to_be_visible(timeout=LONG)
    page.get_by_label("Tokens at most", exact=True).fill("7")
    page.get_by_role("button", name="Again with another seed").click(delay=pressed)
    expect(page.get_by_text(re.compile(r"seed \d+ · 7 tokens"))).to_be_visible(timeout=LONG)
    visitor.choose("Image")
    expect(steps).to_have_value("6")


def test_a_text_is_shown_as_it_comes_while_options_change(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.set("Tokens at most", "1900")
    visitor.say(words("Tell me a long story"))
    answer = visitor.page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stText")
    expect(answer).not_to_be_empty(timeout=LONG)
    visitor.set("Temperature: how daring", "0.5")

    expect(visitor.page.get_by_text(re.compile(r"seed \d+ · 1900 tokens · first word after"))).to_be_visible(
        timeout=LONG
    )
    expect(visitor.page.get_by_label("Temperature: how daring", exact=True)).to_have_value("0.5")


def test_the_page_that_the_keyboard_is_at_is_seen(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    link = visitor.page.get_by_test_id("stTopNavLink").filter(has_text="Usage")
    expect(link).to_have_css("outline-style", "none")
    link.focus()
    visitor.page.keyboard.press("Shift+Tab")
    visitor.page.keyboard.press("Tab")

    expect(link).to_be_focused()
    expect(link).to_have_css("outline-style", "solid")


def test_what_cannot_be_made_is_said_with_its_reason(system: System, visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture")
    asked = words("a broken picture")
    visitor = visit(system)
    visitor.open()
    visitor.choose("Image")
    visitor.say(asked, file)

    reason = "It failed: The file is not a PNG, JPEG, WebP, GIF or BMP picture. Attach another picture."
    expect(visitor.card(asked)).to_contain_text(reason, timeout=LONG)


def summary(client: httpx.Client, **query: str) -> dict[str, dict[str, Any]]:
    """What was asked for today and yesterday of each modality, as the gateway says."""
    since = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    asked = {"since": since, "bucket_width": "all", "group_by": "modality", "percentiles": ",".join(TIMES), **query}
    buckets = client.get("/v1/usage/summary", params=asked).json()["data"]
    return {total["modality"]: total for bucket in buckets for total in bucket["results"] if total["modality"]}


def marks(visitor: Visitor, drawn: str) -> dict[str, list[float]]:
    """The values that are drawn, by name: every bar and point says for screen readers what it is of."""
    chart = visitor.page.get_by_test_id("stVegaLiteChart")
    axis = chart.locator("[aria-label^='Y-axis']")
    expect(axis).to_have_attribute("aria-label", re.compile(re.escape(f"'{drawn}'")), timeout=LONG)
    visitor.settle()
    found = chart.locator("[aria-roledescription=bar], [aria-roledescription=point]")
    said = [str(each.get_attribute("aria-label")) for each in found.all()]
    values: dict[str, list[float]] = {}
    for label in said:
        [(value, name)] = re.findall(rf"; {re.escape(drawn)}: (.*); Modality: (.*)$", label)
        values.setdefault(name, []).append(float(value.replace(",", "").replace("\u2212", "-")))
    return values


def cells(table: Locator) -> list[list[str]]:
    """The rows of a table, which are there for screen readers."""
    rows: list[list[str]] = table.locator("table [role=row]").evaluate_all(
        "rows => rows.map(row => [...row.children].map(cell => cell.innerText || cell.textContent))"
    )
    return rows


def said(seconds: float | None) -> str:
    """A time as people read it."""
    if seconds is None:
        return "unknown"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def test_usage_is_what_was_asked_for(system: System, visit: Visit, client: httpx.Client) -> None:
    jobs = [{"status": status} for status in ("queued", "in_progress")]
    system.wait(lambda: not any(client.get("/v1/jobs", params=open_).json()["data"] for open_ in jobs))
    before = summary(client)
    for _ in range(3):
        assert client.get("/generate/image", params={"prompt": "a"}).is_success
    assert client.get("/generate/audio", params={"prompt": "a"}).is_success
    assert client.post("/v1/images/generations", json={"prompt": "a", "size": "1x1"}).status_code == 400
    grown = {"image": 4, "audio": 1}
    system.wait(
        lambda: all(
            summary(client)[name]["requests"] >= before.get(name, {}).get("requests", 0) + more
            for name, more in grown.items()
        )
    )
    visitor = visit(system)
    visitor.open("/usage")
    expect(visitor.page.get_by_role("heading", name="Budgets")).to_be_visible(timeout=LONG)
    visitor.rest()
    totals = summary(client)
    requests, failures = (sum(total[name] for total in totals.values()) for name in ("requests", "failures"))

    assert {name: sum(values) for name, values in marks(visitor, "Requests").items()} == {
        NAMES[name]: total["requests"] for name, total in totals.items()
    }
    metrics = dict(
        zip(*(visitor.page.get_by_test_id(f"stMetric{part}").all_inner_texts() for part in PARTS), strict=True)
    )
    assert metrics["Requests"] == f"{requests:,}"
    assert metrics["Failed"] == f"{failures:,} ({failures / requests:.0%})"
    table = visitor.page.get_by_test_id("stDataFrame").nth(1)
    expect(table.locator("table [role=row]")).to_have_count(1 + len(totals), timeout=LONG)  # they come after the page
    assert cells(table)[1:] == [
        [
            NAMES[name],
            str(total["requests"]),
            str(total["failures"]),
            *(said((total["percentiles"][time] or {}).get(rank)) for time in TIMES for rank in ("p50", "p95")),
        ]
        for name, total in sorted(totals.items())
    ]


@pytest.mark.parametrize(
    ("drawn", "value"),
    [
        ("Failures", lambda total: total["failures"]),
        ("Pixel steps", lambda total: total["units"].get("pixel_steps", 0)),
        ("Seconds of sound", lambda total: total["units"].get("audio_seconds", 0)),
    ],
)
def test_what_is_drawn_is_what_was_made(
    system: System, visit: Visit, client: httpx.Client, drawn: str, value: Callable[[Any], float]
) -> None:
    assert client.get("/generate/image", params={"prompt": "a"}).is_success
    visitor = visit(system)
    visitor.open("/usage")
    choose_drawn(visitor, drawn)
    totals = summary(client)

    assert {name: sum(values) for name, values in marks(visitor, drawn).items()} == {
        NAMES[name]: pytest.approx(value(total), abs=1e-3) for name, total in totals.items()
    }


def test_times_are_drawn_as_they_were(system: System, visit: Visit, client: httpx.Client) -> None:
    assert client.get("/generate/image", params={"prompt": "a"}).is_success
    visitor = visit(system)
    visitor.open("/usage")
    for drawn, time, rank in (
        ("Whole answer, p95 (s)", "response_seconds", "p95"),
        ("Model time, median (s)", "run_seconds", "p50"),
    ):
        choose_drawn(visitor, drawn)
        since = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
        hours = client.get(
            "/v1/usage/summary",
            params={"since": since, "bucket_width": "1h", "group_by": "modality", "percentiles": time, "limit": 48},
        ).json()["data"]
        wanted = [
            total["percentiles"][time][rank]
            for hour in hours
            for total in hour["results"]
            if total["modality"] == "image" and total["percentiles"][time]
        ]
        assert marks(visitor, drawn)["Image"] == pytest.approx(wanted, abs=1e-3)


def choose_drawn(visitor: Visitor, drawn: str) -> None:
    """Choose what is drawn, as soon as something is."""
    expect(visitor.page.get_by_role("heading", name="Budgets")).to_be_visible(timeout=LONG)
    visitor.settle()
    visitor.page.get_by_label("Drawn").click()
    visitor.page.get_by_label("Drawn").fill(drawn)
    visitor.page.get_by_role("option", name=drawn, exact=True).click()


def test_time_is_utc_wherever_the_browser_is(system: System, browser: Browser, client: httpx.Client) -> None:
    assert client.get("/generate/image", params={"prompt": "a"}).is_success
    axes, times = [], []
    for zone in ("Asia/Tokyo", "America/New_York"):
        visitor = Visitor(browser, system.studio, timezone_id=zone)
        visitor.open("/usage")
        marks(visitor, "Requests")
        chart = visitor.page.get_by_test_id("stVegaLiteChart")
        axes.append(str(chart.locator("[aria-label^='X-axis']").get_attribute("aria-label")))
        bars = chart.locator("[aria-roledescription=bar]")
        times.append(
            {re.findall(r"Time \(UTC\): ([^;]*);", str(bar.get_attribute("aria-label")))[0] for bar in bars.all()}
        )
        visitor.context.close()
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    asked = {"since": yesterday.isoformat(), "bucket_width": "1h", "limit": "48", "modality": ",".join(NAMES)}
    hours = client.get("/v1/usage/summary", params=asked).json()["data"]
    used = {f"{datetime.fromisoformat(hour['start']):%d %b %H:%M}" for hour in hours if hour["results"]}

    assert times == [used, used]
    assert all(f"'Time (UTC)' for a utc scale with values from {yesterday:%d %B} 00:00 to " in axis for axis in axes)


WITHIN = """() => [...document.querySelectorAll("[data-testid=stMain], [data-testid=stMainBlockContainer], html")]
    .filter(place => place.scrollWidth > place.clientWidth + 1).map(place => `${place.tagName} ${place.scrollWidth}`)"""


def check_fits(visitor: Visitor, *needed: Locator) -> None:
    """See that a page needs no scrolling to the side, and that what is needed lies within it and can be pressed."""
    visitor.rest()
    assert visitor.page.evaluate(WITHIN) == []
    for each in needed:
        each.scroll_into_view_if_needed()
        assert lies_within(each), each
        each.click(trial=True)


def lies_within(place: Locator) -> bool:
    """Whether all of it, from left to right, is on a narrow screen."""
    box = place.bounding_box()
    return box is not None and box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"]


def test_all_fits_on_a_narrow_screen(system: System, visit: Visit, client: httpx.Client) -> None:
    visitor = visit(system)
    page = visitor.page
    page.set_viewport_size(NARROW)
    for modality, button in (("Image", "PNG"), ("3D", "GLB")):
        _, card = made_in(visitor, modality, "a boat")
        buttons = [card.get_by_role("button", name=name) for name in (button, "Again with another seed", "Delete")]
        check_fits(visitor, page.get_by_test_id("stChatInputTextArea"), *buttons)
    page.get_by_test_id("stExpandSidebarButton").click()
    check_fits(visitor, page.get_by_label("Model", exact=True), page.get_by_role("link", name="Usage"))
    page.get_by_test_id("stSidebarCollapseButton").get_by_role("button").click()
    visitor.open("/usage")
    expect(page.get_by_role("heading", name="Budgets")).to_be_visible(timeout=LONG)
    visitor.settle()
    page.get_by_label("Told apart by").click()
    page.get_by_role("option", name="Model", exact=True).click()
    chart = page.get_by_test_id("stVegaLiteChart")
    of_model = re.compile("Model: ")
    expect(chart.locator("[aria-roledescription=bar]").first).to_have_attribute("aria-label", of_model, timeout=LONG)
    check_fits(visitor)
    legend = chart.locator(".role-legend-label text")
    names = {str(total["model"]) for total in summary(client, group_by="modality,model").values()}
    assert names <= set(legend.all_text_contents())  # whole: one that is cut ends in an ellipsis
    assert all(lies_within(each) for each in legend.all())
    for path in ("/gallery", "/models", "/access", "/key"):
        visitor.open(path)
        check_fits(visitor)


def test_a_key_is_asked_for_kept_over_reloads_and_on_no_page(locked: tuple[System, str], visit: Visit) -> None:
    system, key = locked
    visitor, frames = visit(system), Frames()
    page = visitor.page
    page.on("websocket", frames.listen)
    for given in ("", "atl_1_wrong"):
        visitor.open()
        if given:
            give(visitor, given)
        expect(page.get_by_test_id("stAlert")).to_contain_text("Give a key that is valid.", timeout=LONG)
        expect(page.get_by_text("Model and options")).to_have_count(0)
    give(visitor, key)
    for _ in range(2):
        expect(page.get_by_text("Model and options")).to_be_visible(timeout=LONG)
        expect(page.get_by_test_id("stAlert")).to_have_count(0)
        assert key not in page.content()
        visitor.open()
    visitor.choose("Image")
    assert (
        page.evaluate("document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage)").find(key) < 0
    )
    assert len(frames.received) > 10
    assert len(frames.sent) > 2
    assert not [frame for frame in (*frames.received, *frames.sent) if key.encode() in frame]
    assert not [log for log in (system.data_dir / "logs").iterdir() if key in log.read_text()]
    visitor.open("/key")
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_test_id("stAlert")).to_contain_text("Give a key that is valid.", timeout=LONG)


class Frames:
    """What goes over the page's websockets."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.sent: list[bytes] = []

    def listen(self, socket: WebSocket) -> None:
        """Keep what this one brings and takes."""
        socket.on("framereceived", lambda frame: self.received.append(as_bytes(frame)))
        socket.on("framesent", lambda frame: self.sent.append(as_bytes(frame)))


def as_bytes(frame: str | bytes) -> bytes:
    """A frame, of words or not."""
    return frame.encode() if isinstance(frame, str) else frame


def give(visitor: Visitor, key: str) -> None:
    """Give a key, on its page."""
    visitor.open("/key")
    visitor.page.get_by_label("Key").fill(key)
    visitor.page.get_by_role("button", name="Use this key").click()


def test_files_are_downloaded_with_the_key(locked: tuple[System, str], visit: Visit) -> None:
    system, key = locked
    visitor, asked = visit(system), words("a boat")
    give(visitor, key)
    visitor.choose("Image")
    visitor.say(asked)
    card = visitor.card(asked)
    expect(card.get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)

    assert visitor.download(card, "PNG").startswith(b"\x89PNG")
    card.get_by_role("button", name="Other formats").click()
    assert re.match(rb"RIFF....WEBP", visitor.download(visitor.page.locator("body"), "WEBP"), re.DOTALL)


def test_a_worker_that_is_not_there_is_said_to_be_so(locked: tuple[System, str], visit: Visit) -> None:
    system, key = locked
    visitor = visit(system)
    give(visitor, key)
    visitor.choose("3D")
    expect(visitor.page.get_by_text("shap-e: its worker does not answer.")).to_be_visible(timeout=LONG)
    asked = words("a chair")
    visitor.say(asked)

    expect(visitor.card(asked)).to_contain_text("The job waits until it is back", timeout=LONG)
    visitor.card(asked).get_by_role("button", name="Cancel").click()
    expect(visitor.card(asked)).to_contain_text("Cancelled.", timeout=LONG)
