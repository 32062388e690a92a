"""A browser in front of the studio, used as people use one: by what is written on the page."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Download, Locator, Page, expect, sync_playwright

LONG = 60_000.0  # milliseconds after which something counts as hung
INVITATIONS = {  # what the field at the bottom says
    "Text": "^Ask something",
    "Image": "^Describe a picture",
    "Speech": "^Write what is to be said",
    "Video": "^Describe a film",
    "3D": "^Describe a thing",
}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's browser."""
    program = shutil.which("chromium")
    assert program, "these tests need chromium (Debian: chromium)"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which it does not have for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """Somebody with a browser of their own: cookies and pages are shared with nobody."""

    def __init__(self, browser: Browser, studio: str, **options: Any) -> None:
        self.context = browser.new_context(base_url=studio, **options)
        self.context.set_default_timeout(LONG)
        self.page: Page = self.context.new_page()
        self.foreign: list[str] = []
        self.page.on("request", lambda request: self._note(request.url, studio))

    def _note(self, url: str, studio: str) -> None:
        if not url.startswith((studio, studio.replace("http", "ws", 1), "data:", "blob:")):
            self.foreign.append(url)

    def open(self, path: str = "/") -> None:
        """Go to a page, and wait until it is there."""
        self.page.goto(path)
        expect(self.page.get_by_role("heading", level=1)).to_be_visible(timeout=LONG)

    def choose(self, modality: str) -> None:
        """Choose what to make."""
        self.page.get_by_test_id("stButtonGroup").get_by_text(modality, exact=True).click()
        expect(self.page.get_by_label(re.compile(INVITATIONS[modality]))).to_be_visible(timeout=LONG)
        expect(self.page.get_by_test_id("stChatInputTextArea")).to_have_count(1, timeout=LONG)

    def set(self, label: str, value: str) -> None:
        """Fill an option in."""
        field = self.page.get_by_label(label, exact=True)
        field.fill(value)
        field.press("Enter")
        expect(field).to_have_value(value)

    def settle(self) -> None:
        """Wait until the page's script has run."""
        app = self.page.get_by_test_id("stApp")
        expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=LONG)

    def rest(self) -> None:
        """Wait until all that is shown is there."""
        self.page.wait_for_load_state("networkidle")
        expect(self.page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=LONG)

    def say(self, words: str, picture: Path | None = None) -> None:
        """Write something into the field at the bottom, perhaps with a picture, and send it."""
        if picture is not None:
            self.page.get_by_test_id("stChatInput").locator("input[type=file]").set_input_files(picture)
            expect(self.page.get_by_test_id("stChatInputSubmitButton")).to_be_enabled(timeout=LONG)  # it is uploaded
        field = self.page.get_by_test_id("stChatInputTextArea")
        field.fill(words)
        field.press("Enter")

    def cards(self, words: str) -> Locator:
        """The jobs of those words, newest first."""
        return self.page.locator("[class*='st-key-card-']").filter(has_text=words)

    def card(self, words: str) -> Locator:
        """The newest job of those words."""
        return self.cards(words).first

    def download(self, place: Locator, button: str) -> bytes:
        """Download a file, and read it."""
        with self.page.expect_download() as waiting:
            place.get_by_role("button", name=button, exact=True).click()
        found: Download = waiting.value
        return found.path().read_bytes()
