"""Takes the README's pictures of a studio that runs: `python -m tests.screenshots [URL]`, or `make screenshots`."""

import re
import sys
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.live.browsing import LONG, Visitor, chromium

FOLDER = Path(__file__).parents[1] / "docs" / "images"
URL = "http://127.0.0.1:8501"
WIDE, TALL, NARROW = ({"width": 1200, "height": 800}, {"width": 1200, "height": 1300}, {"width": 390, "height": 800})
SETTLED = 1500.0  # milliseconds after which nothing moves any more


def main(url: str) -> None:
    """Make something of each modality, and take pictures of the pages."""
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        made(browser, url, "Speech", "Good evening.", "audio")
        drawn = made(browser, url, "Image", "a large blue square on the left on a yellow background", "img")
        drawn.page.get_by_role("button", name="Animate this image").click()
        expect(drawn.card("From a picture").locator("video")).to_be_visible(timeout=LONG)
        take(made(browser, url, "3D", "a large green torus", "canvas", color_scheme="dark"), "studio-3d")
        take(opened(browser, url, "/gallery"), "gallery")
        take(written(browser, url), "studio-narrow")
        usage = opened(browser, url, "/usage", color_scheme="dark", viewport=TALL)
        expect(usage.page.get_by_role("heading", name="Budgets")).to_be_visible(timeout=LONG)
        take(usage, "usage")


def made(browser: Browser, url: str, modality: str, words: str, shown: str, **options: object) -> Visitor:
    """Have something made, and wait until it is shown."""
    visitor = opened(browser, url, "/", **options)
    visitor.choose(modality)
    visitor.say(words)
    expect(visitor.card(words).locator(shown)).to_be_visible(timeout=LONG)
    return visitor


def written(browser: Browser, url: str) -> Visitor:
    """Have a text written, on a narrow screen."""
    visitor = opened(browser, url, "/", viewport=NARROW)
    visitor.say("Tell me a story")
    expect(visitor.page.get_by_text(re.compile(r"\d+ tokens"))).to_be_visible(timeout=LONG)
    return visitor


def opened(browser: Browser, url: str, path: str, **options: object) -> Visitor:
    """Open a page, in a browser of its own."""
    visitor = Visitor(browser, url, **{"viewport": WIDE, **options})
    visitor.open(path)
    return visitor


def take(visitor: Visitor, name: str) -> None:
    """Take a picture of what is seen."""
    visitor.page.mouse.move(5, 400)  # beside what would take the wheel for itself
    visitor.page.mouse.wheel(0, -10_000)
    expect(visitor.page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=LONG)
    visitor.page.wait_for_timeout(SETTLED)
    visitor.page.screenshot(path=FOLDER / f"{name}.png")
    visitor.context.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else URL)
