"""Signed URLs: who has one may load what it names, for a while, and nothing else."""

import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.app import create_app
from gateway.errors import GatewayError, InvalidSignature, render
from gateway.settings import Settings
from gateway.signing import Signer, load_secret
from tests.gateway.conftest import LONG, Gateway, Workers, error_of, gateway_settings, served

PICTURE = "/generate/image?prompt=a+dog%20%26+a+bone&seed=1"
SIGNER = Signer(b"secret")

Start = Callable[..., Gateway]


class Door:
    """As authentication will: lets those in who have a signed URL, and nobody else but to sign one."""

    def __init__(self, app: ASGIApp, inner: Any) -> None:
        self._app = app
        self._inner = inner
        self.callers: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.callers.append(self._inner.state.wired.signer.verify(scope))
            except GatewayError as error:
                await render(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


@pytest.fixture
def door(tmp_path: Path, workers: Workers) -> Iterator[tuple[httpx.Client, Door]]:
    app = create_app(gateway_settings(tmp_path), workers)
    door = Door(app, app)
    with served(door) as url, httpx.Client(base_url=url, trust_env=False, timeout=LONG) as client:
        yield client, door


def signed(client: httpx.Client, path: str = PICTURE, **options: int) -> str:
    answer = client.post("/v1/signed_urls", json={"path": path, **options})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["url"])


def test_who_has_the_link_gets_the_media(door: tuple[httpx.Client, Door], workers: Workers) -> None:
    client, callers = door[0], door[1].callers
    answer = client.get(signed(client))

    assert (answer.status_code, answer.content) == (200, b"firstsecondthird")
    assert callers == [None, ""]
    [sent] = workers.requests
    assert sent.read() == b'{"seed":1,"prompt":"a dog & a bone"}'
    assert b"signature" not in repr(sent.headers.raw).encode() + bytes(str(sent.url), "ascii")


def test_the_answer_says_how_long_it_is_good_for(gateway: Gateway) -> None:
    before = time.time()
    answer = gateway.client.post("/v1/signed_urls", json={"path": PICTURE, "expires_in": 60}).json()
    assert before + 59 <= answer["expires_at"] <= time.time() + 60
    assert set(answer) == {"url", "expires_at"}


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("a+dog", "a+cat"),
        lambda url: url.replace("seed=1", "seed=2"),
        lambda url: url.replace("seed=1&", ""),
        lambda url: url + "&size=64x64",
        lambda url: url.replace("/generate/image", "/generate/bentoml/image"),
        lambda url: url.replace("key=", "key=someone"),
        lambda url: url.replace("expires=", "expires=1"),
        lambda url: url.replace("expires=", "expires=1" * 5000),
        lambda url: url.replace("expires=", "expires=x"),
        lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url: url + "é",
        lambda url: url + "&signature=x",
        lambda url: url.replace("&key=", ""),
    ],
)
def test_a_link_that_was_changed_is_refused(
    door: tuple[httpx.Client, Door], workers: Workers, change: Callable[[str], str]
) -> None:
    client = door[0]
    answer = client.get(change(signed(client)))

    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_signature")
    assert workers.requests == []


def test_the_order_of_the_query_does_not_matter(door: tuple[httpx.Client, Door]) -> None:
    path, _, query = signed(door[0]).partition("?")
    assert door[0].get(f"{path}?{urlencode(parse_qsl(query, keep_blank_values=True)[::-1])}").status_code == 200


def test_a_link_is_good_for_reading_only(door: tuple[httpx.Client, Door], workers: Workers) -> None:
    url = signed(door[0])
    asked = door[0].head(url)
    assert (asked.status_code, asked.headers["content-type"]) == (200, "image/png")  # and nothing is generated
    refused = door[0].post(url)
    assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_signature")
    assert "GET and HEAD" in error_of(refused)["message"]
    assert workers.requests == []


def test_a_link_ends() -> None:
    link = SIGNER.sign(PICTURE, "key_1", -1).url
    with pytest.raises(InvalidSignature, match="expired"):
        SIGNER.verify(scope_of(link))


@pytest.mark.parametrize(
    "body",
    [
        {"path": "https://elsewhere.test/generate/image"},
        {"path": "//elsewhere.test/generate/image"},
        {"path": "generate/image"},
        {"path": "/v1/usage"},
        {"path": "/v1/keys"},
        {"path": "/generate/../v1/usage"},
        {"path": "/generate/image?prompt=a&signature=b"},
        {"path": "/generate/image?prompt=a#there"},
        {"path": PICTURE, "expires_in": 3601},
        {"path": PICTURE, "expires_in": 0},
        {"path": PICTURE, "method": "POST"},
        {},
    ],
)
def test_what_cannot_be_signed_is_not(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/v1/signed_urls", json=body)
    assert answer.status_code == 400, answer.text
    error_of(answer)


def scope_of(link: str) -> Scope:
    """As a server sees it."""
    url = httpx.URL("http://gateway.test").join(link)
    return {"type": "http", "method": "GET", "path": url.path, "query_string": url.query}


queries = st.lists(st.tuples(st.text(min_size=1), st.text()))


@given(queries, st.text(st.characters(codec="utf-8")))
def test_whatever_is_asked_for_comes_back_as_it_was(query: list[tuple[str, str]], caller: str) -> None:
    query = [(name, value) for name, value in query if name not in ("expires", "key", "signature")]
    scope = scope_of(SIGNER.sign(f"/generate/image?{urlencode(query, errors='replace')}", caller, 60).url)

    assert SIGNER.verify(scope) == caller
    asked = [(name.encode(errors="replace").decode(), value.encode(errors="replace").decode()) for name, value in query]
    assert parse_qsl(scope["query_string"].decode(), keep_blank_values=True) == asked


def test_another_secret_does_not_do() -> None:
    with pytest.raises(InvalidSignature):
        Signer(b"other").verify(scope_of(SIGNER.sign(PICTURE, "key_1", 60).url))


class TestSecret:
    def test_it_is_made_once_and_only_its_owner_reads_it(self, tmp_path: Path) -> None:
        file = tmp_path / "new" / "signing.key"
        secret = load_secret(file)
        assert len(secret) >= 32
        assert load_secret(file) == secret
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert list(file.parent.iterdir()) == [file]

    def test_links_outlive_the_gateway(self, start: Start, tmp_path: Path) -> None:
        gateway = start()
        url = signed(gateway.client)
        gateway.close()
        assert Signer(load_secret(tmp_path / "signing.key")).verify(scope_of(url)) == ""

    def test_gateways_with_one_key_know_each_others_links(self, start: Start, tmp_path: Path) -> None:
        url = signed(start(signing_key="k" * 32).client)
        assert Signer(b"k" * 32).verify(scope_of(url)) == ""
        assert not (tmp_path / "signing.key").exists()

    def test_links_outlive_the_key_that_signed_them_while_it_is_listed(self, start: Start) -> None:
        old, new = "o" * 32, "n" * 32
        before = signed(start(signing_key=old).client)
        during = start(signing_key=f"{new},{old}").client
        after = start(signing_key=new).client

        assert during.get(before).status_code == 200
        assert after.get(signed(during)).status_code == 200
        assert after.get(before).status_code == 401

    def test_a_short_one_is_refused_without_being_shown(self) -> None:
        with pytest.raises(ValidationError, match="32 characters") as raised:
            Settings(signing_key="swordfish")
        assert "swordfish" not in str(raised.value)
