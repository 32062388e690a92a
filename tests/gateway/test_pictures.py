"""Pictures that bodies name: data URLs are read, links only where the operator lets them, and never inwards."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.gateway.conftest import PNG, Gateway, Workers, error_of, pieces, served
from tests.gateway.test_jobs import create, ended, works
from tests.gateway.test_keys import Start
from tests.gateway.test_media import EDITS, parts

DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()
JSON = {"content-type": "application/json"}
MESHES, VIDEOS, DRAWN = "/v1/3d/generations", "/v1/videos", "/v1/images/generations"


@dataclass
class Site:
    """Gives out pictures, and what a test wants instead."""

    answers: list[Response] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    url: str = ""

    async def give(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answers.pop(0) if self.answers else Response(PNG, media_type="image/png")


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with served(Starlette(routes=[Route("/{path:path}", site.give)])) as url:
        site.url = f"{url}/a.png"
        yield site


@pytest.fixture
def gateway(start: Start) -> Gateway:
    return start(image_urls=True, allowed_networks="127.0.0.1/32", max_upload_bytes=100_000)


def edit(client: httpx.Client, *urls: Any, **fields: Any) -> httpx.Response:
    images = [{"image_url": url} if isinstance(url, str) else url for url in urls]
    return client.post(EDITS, json={"prompt": "a", "images": images, **fields})


def sent(workers: Workers) -> list[tuple[str, str | None, bytes]]:
    [request] = workers.requests
    return sorted(parts(request.headers["content-type"], request.content))


def files_in(request: httpx.Request) -> list[tuple[str, bytes]]:
    found = parts(request.headers["content-type"], request.content)
    return sorted((name, content) for name, filename, content in found if filename is not None)


def test_an_edit_may_name_its_pictures(gateway: Gateway, workers: Workers, site: Site) -> None:
    answer = edit(gateway.client, site.url, mask={"image_url": DATA}, n=2, stream=False, seed=None)

    assert answer.content == b"firstsecondthird"
    assert sent(workers) == [
        ("image[]", "image[]", PNG),
        ("mask", "mask", PNG),
        ("n", None, b"2"),
        ("prompt", None, b"a"),
        ("stream", None, b"false"),
    ]
    [request] = site.asked
    assert {
        name: request.headers.get(name) for name in ("accept-encoding", "user-agent", "authorization", "cookie")
    } == {
        "accept-encoding": "identity",
        "user-agent": "Atelier",
        "authorization": None,
        "cookie": None,
    }


def test_meshes_and_films_may_name_theirs(gateway: Gateway, site: Site) -> None:
    mesh = gateway.client.post(MESHES, json={"image": site.url})
    film = gateway.client.post(VIDEOS, json={"input_reference": {"image_url": site.url}})
    own = gateway.client.post(VIDEOS, json={"input_reference": {"image_url": DATA}})

    assert [mesh.status_code, film.status_code, own.status_code] == [202, 200, 200]
    assert len(site.asked) == 2


def test_steps_of_a_chain_may_name_theirs(gateway: Gateway, workers: Workers, site: Site) -> None:
    works(workers, files={EDITS: (("image", "image/png", b"drawn"),)})
    named = {"image_url": site.url}
    chains = [
        [{"route": EDITS, "body": {"prompt": "a", "images": [named], "mask": {"image_url": DATA}}}],
        [{"route": VIDEOS, "body": {"input_reference": named}}],
        [{"route": MESHES, "body": {"image": site.url}}],
        [{"route": DRAWN, "body": {"prompt": "a"}}, {"route": EDITS, "body": {"prompt": "a", "mask": named}}],
    ]
    for steps in chains:
        job = ended(gateway.client, create(gateway.client, "/v1/jobs", {"steps": steps})["id"])
        assert job["status"] == "completed", job["error"]
    edited, filmed, meshed, _, masked = workers.requests

    assert len(site.asked) == 4
    assert files_in(edited) == [("image[]", PNG), ("mask", PNG)]
    assert files_in(filmed) == [("input_reference", PNG)]
    assert json.loads(meshed.content)["image"] == base64.b64encode(PNG).decode()
    assert json.loads(meshed.content)["model"] == "solids-img2img"
    assert files_in(masked) == [("image", b"PNG"), ("mask", PNG)]


def test_a_chains_links_are_guarded_as_others_are(start: Start, workers: Workers, site: Site) -> None:
    named = {"image_url": site.url}
    steps = {
        "images": {"route": EDITS, "body": {"prompt": "a", "images": [named]}},
        "input_reference": {"route": VIDEOS, "body": {"input_reference": named}},
        "image": {"route": MESHES, "body": {"image": site.url}},
    }
    for settings in ({"image_urls": False, "allowed_networks": "127.0.0.1/32"}, {"image_urls": True}):
        client = start(**settings).client
        for param, step in steps.items():
            error = error_of(client.post("/v1/jobs", json={"steps": [step]}))
            assert (error["param"], error["code"]) == (param, "url_not_allowed")
    again = {"route": EDITS, "body": {"prompt": "a", "images": [named]}}
    drawn = {"route": DRAWN, "body": {"prompt": "a"}}

    assert error_of(client.post("/v1/jobs", json={"steps": [drawn, again]}))["param"] == "steps.1.images"
    assert site.asked == []
    assert workers.requests == []


@pytest.mark.parametrize("allowed", [True, False])
def test_links_are_refused_unless_the_operator_allows_them(start: Start, site: Site, allowed: bool) -> None:
    client = start(image_urls=allowed, allowed_networks="127.0.0.1/32").client
    answers = [
        edit(client, site.url),
        client.post(MESHES, json={"image": site.url}),
        client.post(VIDEOS, json={"input_reference": site.url}),
    ]

    if allowed:
        assert all(answer.is_success for answer in answers)
    else:
        assert [error_of(answer)["param"] for answer in answers] == ["images", "image", "input_reference"]
        assert [error_of(answer)["code"] for answer in answers] == ["url_not_allowed"] * 3
        assert "ATELIER_IMAGE_URLS" in error_of(answers[0])["message"]
        assert site.asked == []


def test_no_link_leads_inwards(start: Start, workers: Workers, site: Site) -> None:
    client = start(image_urls=True, allowed_networks="127.0.0.1/32").client
    port = httpx.URL(site.url).port
    inwards = [
        f"http://127.0.0.2:{port}/a.png",
        f"http://127.1:{port}/a.png",
        f"http://[::1]:{port}/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/a.png",
        "http://[::ffff:10.0.0.1]/a.png",
        "http://user@example.com/a.png",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
    ]
    site.answers = [RedirectResponse(url) for url in inwards]
    refused = [edit(client, url) for url in inwards] + [edit(client, site.url) for _ in inwards]

    assert [(each.status_code, error_of(each)["code"]) for each in refused] == [(400, "url_not_allowed")] * len(refused)
    assert {error_of(each)["param"] for each in refused} == {"images"}
    assert len(site.asked) == len(inwards)  # by way of the redirects' own address alone
    assert workers.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://[",
        "http://a/\n",
        "http://a/" + "a" * 70_000,
        "http://\u200d/",
        "http://a..b/",
        "http://\u2460/",
    ],
)
def test_what_is_no_url_is_refused(gateway: Gateway, workers: Workers, url: str) -> None:
    refused = edit(gateway.client, url)

    assert (refused.status_code, error_of(refused)["param"]) == (400, "images")
    assert error_of(refused)["code"] in ("url_not_allowed", "invalid_image_url")  # it leads nowhere
    assert workers.requests == []


def test_a_name_is_what_it_is_resolved_to(start: Start, site: Site) -> None:
    client = start(image_urls=True).client
    refused = edit(client, site.url.replace("127.0.0.1", "localhost"))

    assert (refused.status_code, error_of(refused)["code"]) == (400, "url_not_allowed")
    assert site.asked == []


def test_redirects_are_followed_a_few_times(gateway: Gateway, workers: Workers, site: Site) -> None:
    site.answers = [RedirectResponse("/b.png"), RedirectResponse(site.url)]
    assert edit(gateway.client, site.url).is_success
    site.answers = [RedirectResponse("/b.png") for _ in range(4)]
    endless = edit(gateway.client, site.url)

    assert (endless.status_code, error_of(endless)["code"]) == (400, "invalid_image_url")
    assert len(workers.requests) == 1


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Response(status_code=404), 400, "invalid_image_url"),
        (Response(status_code=302), 400, "invalid_image_url"),
        (RedirectResponse("http://["), 400, "invalid_image_url"),
        (Response(PNG, headers={"content-encoding": "gzip"}), 400, "invalid_image_url"),
        (Response(bytes(100_001)), 413, "payload_too_large"),
        (StreamingResponse(pieces(bytes(60_000), bytes(60_000))), 413, "payload_too_large"),
        (StreamingResponse(pieces(b"half", RuntimeError("broken"))), 400, "invalid_image_url"),
    ],
    ids=["404", "no-location", "no-url", "compressed", "large", "endless", "broken"],
)
def test_what_is_no_whole_picture_is_refused(
    gateway: Gateway, workers: Workers, site: Site, answer: Response, status: int, code: str
) -> None:
    site.answers = [answer]
    refused = edit(gateway.client, site.url)

    assert (refused.status_code, error_of(refused)["code"]) == (status, code)
    assert workers.requests == []


def test_pictures_are_together_as_large_as_one(gateway: Gateway, site: Site) -> None:
    site.answers = [Response(bytes(60_000)), Response(bytes(60_000))]

    assert edit(gateway.client, site.url, site.url).status_code == 413


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (EDITS, {"prompt": "a", "images": []}, "images"),
        (EDITS, {"prompt": "a", "images": DATA}, "images"),
        (EDITS, {"prompt": "a", "images": [{"file_id": "file-1"}]}, "images"),
        (EDITS, {"prompt": "a", "images": [{"image_url": "data:image/png;base64,?"}]}, "images"),
        (EDITS, {"prompt": "a", "images": [{"image_url": "data:text/html,hi"}]}, "images"),
        (EDITS, {"prompt": "a", "images": [DATA], "mask": 7}, "mask"),
        (EDITS, {"prompt": ["a"], "images": [DATA]}, "prompt"),
        (EDITS, {"prompt": "a", "images": [DATA], "strength": 2}, "strength"),
        (EDITS, {"prompt": "a", "images": [DATA], "n": "2"}, "n"),
        (VIDEOS, {"input_reference": {"file_id": "file-1"}}, "input_reference"),
        (MESHES, {"image": "data:image/png;base64,?"}, "image"),
        (MESHES, {"image": "ftp://example.com/a.png"}, "image"),
    ],
)
def test_what_names_no_picture_is_refused_by_its_field(
    client: httpx.Client, route: str, body: dict[str, Any], param: str
) -> None:
    refused = client.post(route, content=json.dumps(body), headers=JSON)

    assert (refused.status_code, error_of(refused)["param"]) == (400, param)
