"""Browsers and what is kept for them."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ui.visitors import COOKIE, MAX_KEPT, Conversations, Visitors


async def page(_: Request) -> Response:
    return HTMLResponse("hello")


async def numbers(_: Request) -> Response:
    return JSONResponse([1])


@pytest.fixture
def browser() -> TestClient:
    routes = [Route("/", page), Route("/numbers", numbers)]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(Visitors)]))


def test_a_browser_has_a_name_of_its_own_and_keeps_it(browser: TestClient) -> None:
    assert "set-cookie" not in browser.get("/numbers").headers
    cookie = browser.get("/").headers["set-cookie"]

    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "set-cookie" not in browser.get("/").headers
    browser.cookies.clear()
    assert browser.get("/").headers["set-cookie"] != cookie


def test_a_conversation_is_of_a_browser_and_a_key() -> None:
    kept = Conversations()

    assert kept.of("one", "") is kept.of("one", "")
    assert len({id(kept.of(*who)) for who in (("one", ""), ("two", ""), ("one", "atl_1_secret"))}) == 3


def test_who_has_not_been_here_for_longest_is_forgotten_first() -> None:
    kept = Conversations()
    first, second = kept.of("first", ""), kept.of("second", "")
    for number in range(MAX_KEPT - 1):
        assert kept.of("first", "") is first
        kept.of(f"other {number}", "")

    assert kept.of("first", "") is first
    assert kept.of("second", "") is not second
