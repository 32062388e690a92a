"""The player of a speech in a real browser, over a gateway that plays its part."""

import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from threading import Event, Semaphore
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect
from starlette.responses import StreamingResponse

from tests.live.browsing import LONG, chromium
from tests.live.conftest import free_ports
from tests.live.made import wait_for
from tests.ui.conftest import job, model, page_of
from tests.ui.gateway import Gateway, serving

RATE = 24_000  # Hz


def silence(seconds: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(RATE * seconds, np.int16), RATE, format="WAV")
    return file.getvalue()


SOUND = silence(20)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with serving() as playing:
        playing.answers["GET", "/v1/models"] = {"data": [model("audio", "bark", voices=["alloy"])]}
        yield playing


@pytest.fixture
def page(gateway: Gateway) -> Iterator[Page]:
    """A browser before a studio before the gateway."""
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    settings = {"ATELIER_URL": gateway.url, "ATELIER_UI_PORT": str(port)}
    studio = subprocess.Popen([sys.executable, "-m", "ui"], env={**os.environ, **settings})
    try:
        transport = httpx.HTTPTransport(retries=8)
        with httpx.Client(transport=transport) as client, chromium() as browser:
            assert client.get(url).is_success
            page = browser.new_page(base_url=url)
            page.set_default_timeout(LONG)
            yield page
    finally:
        studio.terminate()
        studio.wait()


def is_now(gateway: Gateway, status: str, attempts: int) -> None:
    """Let the speech be at an attempt."""
    files = [{"variant": "audio", "step": 1, "media_type": "audio/wav", "url": "/v1/jobs/job_1/content"}]
    fields: dict[str, Any] = {"status": status, "attempts": attempts}
    speech = job("audio", **fields, outputs=files if status == "completed" else [])
    gateway.answers["GET", "/v1/jobs"], gateway.answers["GET", "/v1/jobs/job_1"] = page_of(speech), speech


def looks(gateway: Gateway) -> Semaphore:
    """Count how often the studio looks at the jobs from now on."""
    listed, looked = gateway.answers["GET", "/v1/jobs"], Semaphore(0)

    def answer(_: object) -> Any:
        looked.release()
        return listed

    gateway.answers["GET", "/v1/jobs"] = answer
    return looked


def player_on(page: Page) -> Locator:
    """Look at the studio until the speech has its player."""
    page.goto("/")
    page.get_by_test_id("stButtonGroup").get_by_text("Speech", exact=True).click()
    player = page.locator(".st-key-card-job_1 audio")
    expect(player).to_be_visible(timeout=LONG)
    return player


def test_a_speech_that_waits_for_its_worker_keeps_its_player(gateway: Gateway, page: Page) -> None:
    spoken, asked = Event(), []

    async def sound() -> AsyncIterator[bytes]:
        await anyio.to_thread.run_sync(spoken.wait, LONG / 1000)
        yield SOUND

    def answer(_: object) -> StreamingResponse:
        asked.append("sound")
        return StreamingResponse(sound(), media_type="audio/wav")

    gateway.answers["GET", "/v1/jobs/job_1/sound"] = answer
    is_now(gateway, "in_progress", 1)
    player = player_on(page)
    begun = player.element_handle()
    player.evaluate("player => { player.play(); }")
    for status, attempts in [("queued", 1), ("in_progress", 2), ("queued", 2), ("in_progress", 3)]:
        is_now(gateway, status, attempts)
        looked = looks(gateway)
        for _ in range(3):
            assert looked.acquire(timeout=LONG / 1000)
    assert player.evaluate("(player, begun) => player === begun && !player.error", begun)
    spoken.set()
    wait_for(player, "player => player.currentTime > 0")

    assert asked == ["sound"]


def test_a_speech_that_broke_off_is_asked_for_again(gateway: Gateway, page: Page) -> None:
    is_mended = Event()

    async def sound() -> AsyncIterator[bytes]:
        yield SOUND[: len(SOUND) // 20]
        if not is_mended.is_set():
            raise ConnectionAbortedError
        yield SOUND[len(SOUND) // 20 :]

    gateway.answers["GET", "/v1/jobs/job_1/sound"] = lambda _: StreamingResponse(sound(), media_type="audio/wav")
    is_now(gateway, "in_progress", 1)
    player = player_on(page)
    player.evaluate("player => { player.play().catch(() => {}); }")
    wait_for(player, "player => player.error")
    is_mended.set()
    is_now(gateway, "completed", 2)

    wait_for(player, "player => !player.error && player.readyState > 0")
