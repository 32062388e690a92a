"""The studio in a real browser: every modality made and downloaded, and what goes wrong said."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped] # it ships no types
from playwright.sync_api import Browser, expect

from tests.live.browsing import INVITATIONS, LONG, Visitor, chromium
from tests.live.conftest import MODELS_FILE, TASKS, System, free_ports, started
from tests.live.pictures import png
from tests.live.test_crash import serving_process

Visit = Callable[[System], Visitor]
NUMBERS = count(1)


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
    """Words that nobody else asks for."""
    return f"{of} number {next(NUMBERS)}"


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


@pytest.mark.parametrize(
    ("modality", "shown", "files"),
    [
        ("Image", "img", {"PNG": b"\x89PNG"}),
        ("Speech", "audio", {"MP3": b"ID3"}),
        ("Video", "video", {"MP4": b"ftyp", "Thumbnail": b"\xff\xd8", "Sprite sheet": b"\xff\xd8"}),
        (
            "3D",
            "canvas",
            {"GLB": b"glTF", "OBJ": b"\nv ", "PLY": b"ply", "Points (PLY)": b"ply", "Turning (GIF)": b"GIF8"},
        ),
    ],
)
def test_a_modality_is_made_shown_and_downloaded(
    system: System, visit: Visit, modality: str, shown: str, files: dict[str, bytes]
) -> None:
    visitor = visit(system)
    asked = words("a boat")
    visitor.open()
    visitor.choose(modality)
    visitor.say(asked)
    card = visitor.card(asked)

    expect(card.locator(shown)).to_be_visible(timeout=LONG)
    expect(card).to_contain_text(re.compile(r"seed \d+ · \d+\.\d s"))
    for button, part in files.items():
        assert part in visitor.download(card, button), button


@pytest.mark.parametrize(
    ("modality", "files"),
    [
        ("Image", {"WEBP": b"WEBP", "JPG": b"\xff\xd8"}),
        ("Speech", {"WAV": b"RIFF", "FLAC": b"fLaC", "OPUS": b"OggS", "AAC": b"\xff\xf1"}),
        ("Video", {"GIF": b"GIF89a", "WEBP": b"WEBP"}),
    ],
)
def test_other_formats_are_downloaded_and_nothing_is_made_or_counted_again(
    system: System, visit: Visit, client: httpx.Client, modality: str, files: dict[str, bytes]
) -> None:
    visitor = visit(system)
    visitor.page.set_viewport_size({"width": 1200, "height": 2000})  # the list moves out of a small one with its button
    asked = words("a boat")
    visitor.open()
    visitor.choose(modality)
    visitor.say(asked)
    formats = visitor.card(asked).get_by_role("button", name="Other formats")
    expect(formats).to_be_visible(timeout=LONG)
    [job] = [job for job in client.get("/v1/jobs").json()["data"] if job["prompt"] == asked]
    made = made_so_far(client)
    formats.click()
    for button, part in files.items():
        content = visitor.download(visitor.page.get_by_test_id("stPopoverBody"), button)
        assert part in content, button
        said = client.post("/v1/content_provenance_checks", files={"file": content}).json()["results"][0]
        assert (said["model"], said["seed"]) == (job["model"], job["seed"])

    assert made_so_far(client) == made


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
    player.evaluate("player => new Promise(heard => player.addEventListener('timeupdate', heard))")
    [job] = [job for job in client.get("/v1/jobs").json()["data"] if job["prompt"] == asked]
    assert job["status"] == "in_progress"

    begun = player.element_handle()
    expect(visitor.card(asked).get_by_role("button", name="MP3")).to_be_visible(timeout=LONG)
    assert player.evaluate("(player, begun) => player === begun && !player.error", begun)


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


def test_a_mesh_turns_under_the_mouse_and_the_keys(system: System, visit: Visit) -> None:
    visitor = visit(system)
    asked = words("a chair")
    visitor.open()
    visitor.choose("3D")
    visitor.say(asked)
    canvas = visitor.card(asked).locator("canvas")
    expect(canvas).to_have_attribute("data-turned", "0.60 0.30 3.00", timeout=LONG)
    canvas.hover()
    visitor.page.mouse.down()
    visitor.page.mouse.move(10, 10)
    visitor.page.mouse.up()
    expect(canvas).not_to_have_attribute("data-turned", "0.60 0.30 3.00")
    before = str(canvas.get_attribute("data-turned"))
    canvas.press("ArrowRight")
    expect(canvas).not_to_have_attribute("data-turned", before)


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
    expect(visitor.page.locator("[class*='st-key-card-']").filter(has_text=asked)).to_have_count(2, timeout=LONG)

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

    expect(visitor.card(asked).get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)


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


def test_from_the_gallery_one_goes_on_in_the_studio(system: System, visit: Visit, client: httpx.Client) -> None:
    asked = words("a rare boat")
    client.post("/v1/images/generations", json={"prompt": asked}, headers={"prefer": "respond-async, wait=30"})
    visitor = visit(system)
    visitor.open()
    visitor.choose("Speech")
    visitor.page.get_by_role("link", name="Gallery").click()
    visitor.page.get_by_label("Search").fill(asked)
    visitor.page.get_by_label("Search").press("Enter")
    expect(visitor.page.get_by_text("1 found", exact=True)).to_be_visible(timeout=LONG)
    visitor.page.get_by_role("button", name="View").click()
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
    visitor.page.get_by_role("button", name="Stop script").click()
    visitor.settle()
    visitor.open()

    expect(visitor.page.get_by_text(re.compile(r"seed \d+ · first word after"))).to_be_visible(timeout=LONG)
    expect(visitor.page.get_by_test_id("stChatMessage")).to_have_count(2)


def test_a_text_goes_on_over_a_reload_and_on_another_page(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.set("Tokens at most", "600")
    visitor.say(words("Tell me a long story"))
    answer = visitor.page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stText")
    expect(answer).not_to_be_empty(timeout=LONG)
    visitor.open()
    expect(answer).not_to_be_empty(timeout=LONG)
    visitor.page.get_by_role("link", name="Gallery").click()
    expect(visitor.page.get_by_role("heading", name="Gallery")).to_be_visible(timeout=LONG)
    visitor.page.get_by_role("link", name="Studio").click()

    expect(visitor.page.get_by_text(re.compile(r"seed \d+ · 600 tokens · first word after"))).to_be_visible(
        timeout=LONG
    )
    expect(visitor.page.get_by_test_id("stChatMessage")).to_have_count(2)


def test_options_stay_as_they_are_on_other_pages(system: System, visit: Visit) -> None:
    visitor = visit(system)
    visitor.open()
    visitor.choose("Image")
    visitor.set("Denoising steps", "7")
    visitor.choose("Speech")
    visitor.page.get_by_role("link", name="Gallery").click()
    expect(visitor.page.get_by_role("heading", name="Gallery")).to_be_visible(timeout=LONG)
    visitor.page.get_by_role("link", name="Studio").click()
    expect(visitor.page.get_by_label(re.compile(INVITATIONS["Speech"]))).to_be_visible(timeout=LONG)
    visitor.choose("Image")

    expect(visitor.page.get_by_label("Denoising steps", exact=True)).to_have_value("7")


def test_what_cannot_be_made_is_said_with_its_reason(system: System, visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture")
    asked = words("a broken picture")
    visitor = visit(system)
    visitor.open()
    visitor.choose("Image")
    visitor.say(asked, file)

    reason = "It failed: The file is not a PNG, JPEG, WebP, GIF or BMP picture. Change what it says, or try again."
    expect(visitor.card(asked)).to_contain_text(reason, timeout=LONG)


def test_usage_is_drawn(system: System, visit: Visit, client: httpx.Client) -> None:
    client.get("/generate/image", params={"prompt": "a"})
    visitor = visit(system)
    visitor.open("/usage")

    expect(visitor.page.get_by_test_id("stVegaLiteChart").locator("svg, canvas").first).to_be_visible(timeout=LONG)
    expect(visitor.page.get_by_text("Model time, median").first).to_be_visible()
    chosen = visitor.page.get_by_label("Drawn")
    chosen.click()
    for drawn in visitor.page.get_by_role("option").all_inner_texts():
        chosen.click()
        visitor.page.get_by_role("option", name=drawn, exact=True).click()
        axis = visitor.page.get_by_test_id("stVegaLiteChart").locator("[aria-label^='Y-axis']")
        expect(axis).to_have_attribute("aria-label", re.compile(re.escape(f"'{drawn}'")), timeout=LONG)


def test_a_key_is_asked_for_kept_over_reloads_and_on_no_page(locked: tuple[System, str], visit: Visit) -> None:
    system, key = locked
    visitor = visit(system)
    page = visitor.page
    for given, said in (
        ("", "Give a key that is valid."),
        ("atl_1_wrong", "Give a key that is valid."),
        (key, "ready"),
    ):
        visitor.open()
        if given:
            visitor.open("/key")
            page.get_by_label("Key").fill(given)
            page.get_by_role("button", name="Use this key").click()
        if given != key:
            expect(page.get_by_test_id("stAlert")).to_contain_text(said, timeout=LONG)
    for _ in range(2):
        visitor.open()
        expect(page.get_by_text("Model and options")).to_be_visible(timeout=LONG)
        assert key not in page.content()
    assert (
        page.evaluate("document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage)").find(key) < 0
    )
    assert not [log for log in (system.data_dir / "logs").iterdir() if key in log.read_text()]
    visitor.open("/key")
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_test_id("stAlert")).to_contain_text("Give a key that is valid.", timeout=LONG)


def test_files_are_downloaded_with_the_key(locked: tuple[System, str], visit: Visit) -> None:
    system, key = locked
    visitor, asked = visit(system), words("a boat")
    visitor.open("/key")
    visitor.page.get_by_label("Key").fill(key)
    visitor.page.get_by_role("button", name="Use this key").click()
    visitor.choose("Image")
    visitor.say(asked)
    card = visitor.card(asked)
    expect(card.get_by_role("button", name="PNG")).to_be_visible(timeout=LONG)

    assert visitor.download(card, "PNG").startswith(b"\x89PNG")
    card.get_by_role("button", name="Other formats").click()
    assert b"WEBP" in visitor.download(visitor.page.locator("body"), "WEBP")


def test_a_worker_that_is_not_there_is_said_to_be_so(locked: tuple[System, str], visit: Visit) -> None:
    system, key = locked
    visitor = visit(system)
    visitor.open("/key")
    visitor.page.get_by_label("Key").fill(key)
    visitor.page.get_by_role("button", name="Use this key").click()
    visitor.choose("3D")
    expect(visitor.page.get_by_text("shap-e: its worker does not answer.")).to_be_visible(timeout=LONG)
    asked = words("a chair")
    visitor.say(asked)

    expect(visitor.card(asked)).to_contain_text("The job waits until it is back", timeout=LONG)
    visitor.card(asked).get_by_role("button", name="Cancel").click()
    expect(visitor.card(asked)).to_contain_text("Cancelled.", timeout=LONG)
