"""The key: in a cookie that no script can read, and nowhere else."""

from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.runtime.context import ContextProxy
from streamlit.testing.v1 import AppTest

from tests.ui.gateway import Gateway
from ui.server import key_routes

OURS = {"origin": "http://testserver"}


@pytest.fixture
def browser() -> TestClient:
    return TestClient(Starlette(routes=key_routes()), follow_redirects=False)


def test_a_key_goes_into_a_cookie_that_scripts_cannot_read(browser: TestClient) -> None:
    answer = browser.post("/key", data={"key": " atl_1_secret "}, headers=OURS)

    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("atelier_key=atl_1_secret;")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert browser.cookies["atelier_key"] == "atl_1_secret"
    assert "atl_1_secret" not in browser.get("/key").text


def test_a_forgotten_key_is_gone(browser: TestClient) -> None:
    browser.post("/key", data={"key": "atl_1_secret"}, headers=OURS)
    browser.post("/key/forget", headers=OURS)

    assert "atelier_key" not in browser.cookies


def test_a_page_that_stays_open_does_without_a_key_that_was_forgotten(
    browser: TestClient, gateway: Gateway, visit: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.cookies["atelier_visitor"] = "somebody"
    monkeypatch.setattr(ContextProxy, "cookies", {"atelier_visitor": "somebody", "atelier_key": "atl_1_secret"})

    def is_sent() -> bool:
        visit("models")
        return gateway.asked[-1][3].get("authorization") == "Bearer atl_1_secret"

    browser.post("/key", data={"key": "atl_1_secret"}, headers=OURS)
    assert is_sent()
    browser.post("/key/forget", headers=OURS)
    assert not is_sent()
    browser.post("/key", data={"key": "atl_1_secret"}, headers=OURS)
    assert is_sent()
    browser.post("/key", data={"key": "atl_2_other"}, headers=OURS)
    assert not is_sent()


@pytest.mark.parametrize("path", ["/key", "/key/forget"])
@pytest.mark.parametrize("headers", [{}, {"origin": "http://evil.example"}, {"origin": "null"}])
def test_another_page_chooses_no_key(browser: TestClient, path: str, headers: dict[str, str]) -> None:
    answer = browser.post(path, data={"key": "atl_1_theirs"}, headers=headers)

    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("key", ["", "two words", "a;b", "ключ", "x" * 513, "a\r\nset-cookie: b=c"])
def test_what_cannot_be_a_key_is_said_to_be_none(browser: TestClient, key: str) -> None:
    answer = browser.post("/key", data={"key": key}, headers=OURS)

    assert answer.status_code == 400
    assert "That cannot be a key" in answer.text
    assert "set-cookie" not in answer.headers
