"""The key: in a cookie that no script can read, and nowhere else."""

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

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
