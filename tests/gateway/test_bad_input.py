"""Bad input: a 400 that names the field, and no worker is troubled with it."""

from typing import Any

import httpx
import pytest

from services.schema import MAX_SEED
from tests.gateway.conftest import PNG, Gateway, Workers, error_of

PROMPT_ROUTES = (
    "/generate/text",
    "/generate/audio",
    "/generate/image",
    "/generate/bentoml/image",
    "/generate/3d",
    "/generate/openai/text",
)
LONGEST = {"/generate/text": 32_000, "/generate/openai/text": 32_000, "/generate/audio": 4096}
FILE = {"image": ("cat.png", PNG, "image/png")}


@pytest.fixture
def workers(shared: tuple[Gateway, Workers]) -> Workers:
    shared[1].forget()
    return shared[1]


@pytest.mark.parametrize("route", PROMPT_ROUTES)
@pytest.mark.parametrize(
    "query",
    [
        "",
        "prompt=",
        "prompt=%20%0A",
        "prompt=a%00b",
        "prompt=a%1b[31m",
        "prompt=%ff",
        "prompt=%ed%a0%80",
        "prompt=a&prompt=b",
        "prompt=LONG",
    ],
)
def test_a_prompt_that_is_no_text_reaches_no_worker(
    client: httpx.Client, workers: Workers, route: str, query: str
) -> None:
    too_long = "a" * (LONGEST.get(route, 2000) + 1)
    response = client.get(f"{route}?{query.replace('LONG', too_long)}")

    error = error_of(response)
    assert (response.status_code, error["param"], error["type"]) == (400, "prompt", "invalid_request_error")
    assert workers.requests == []


@pytest.mark.parametrize(
    ("route", "query", "param"),
    [
        *((route, "promt=x", "promt") for route in PROMPT_ROUTES),
        ("/generate/openai/text", "temperature=1", "temperature"),
        ("/generate/text", "model=other", "model"),
        ("/generate/text", "temperature=2.1", "temperature"),
        ("/generate/text", "temperature=-1", "temperature"),
        ("/generate/text", "temperature=nan", "temperature"),
        ("/generate/text", "temperature=inf", "temperature"),
        ("/generate/text", "temperature=warm", "temperature"),
        ("/generate/text", "temperature=", "temperature"),
        ("/generate/text", "seed=-1", "seed"),
        ("/generate/text", f"seed={MAX_SEED + 1}", "seed"),
        ("/generate/text", f"seed={'9' * 5000}", "seed"),
        ("/generate/text", "seed=1.5", "seed"),
        ("/generate/text", "seed=1&seed=1", "seed"),
        ("/generate/audio", "preset=", "preset"),
        ("/generate/audio", f"preset={'v' * 101}", "preset"),
        ("/generate/image", "num_inference_steps=0", "num_inference_steps"),
        ("/generate/image", "num_inference_steps=201", "num_inference_steps"),
        ("/generate/image", "num_inference_steps=many", "num_inference_steps"),
        ("/generate/image", "size=500x512", "size"),
        ("/generate/image", "size=512x509", "size"),
        ("/generate/image", "size=0x0", "size"),
        ("/generate/image", "size=-64x64", "size"),
        ("/generate/image", "size=64x", "size"),
        ("/generate/image", "size=64x64%0A", "size"),
        ("/generate/image", "size=99999x99999", "size"),
        ("/generate/bentoml/image", "num_inference_steps=0", "num_inference_steps"),
        ("/generate/3d", "num_inference_steps=0", "num_inference_steps"),
        ("/generate/3d", "num_inference_steps=1", "num_inference_steps"),
        ("/generate/3d", "size=64x64", "size"),
    ],
)
def test_a_query_that_does_not_fit_names_the_field_and_reaches_no_worker(
    client: httpx.Client, workers: Workers, route: str, query: str, param: str
) -> None:
    response = client.get(f"{route}?prompt=fine&{query}")

    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")
    assert workers.requests == []


def test_an_unknown_name_has_a_code_of_its_own(client: httpx.Client) -> None:
    assert error_of(client.get("/generate/text?prompt=a&promt=b"))["code"] == "unknown_parameter"


TWO_FILES = [("image", ("a.png", PNG)), ("image", ("b.png", PNG))]
BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({}, "image"),
        ({"files": {"image": ("", b"")}}, "image"),
        ({"files": {"picture": PNG}}, "image"),
        ({"data": {"image": "https://example.com/cat.png"}}, "image"),
        ({"files": {"image": (None, "text")}}, "image"),
        ({"json": {"image": "x", "num_frames": 3}}, "image"),
        ({"content": PNG, "headers": {"content-type": "image/png"}}, "image"),
        ({"content": PNG}, "image"),
        ({"files": TWO_FILES}, "image"),
        ({"files": {**FILE, "mask": PNG}}, "mask"),
        ({"files": {**FILE, "num_frames": b"3"}}, "num_frames"),
        ({"files": FILE, "data": {"num_frames": "0"}}, "num_frames"),
        ({"files": FILE, "data": {"num_frames": "-1"}}, "num_frames"),
        ({"files": FILE, "data": {"num_frames": "1000000"}}, "num_frames"),
        ({"files": FILE, "data": {"num_frames": "x"}}, "num_frames"),
        ({"files": FILE, "data": {"num_frames": ["2", "3"]}}, "num_frames"),
        ({"files": FILE, "data": {"seed": "-1"}}, "seed"),
        ({"files": FILE, "data": {"fps": "7"}}, "fps"),
        ({"files": FILE, "params": {"num_frames": "3"}}, "num_frames"),
        ({"content": b"no boundary in here", "headers": BOUNDARY}, "image"),
        ({"content": b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--", "headers": BOUNDARY}, "image"),
        ({"content": b"--b", "headers": {"content-type": "multipart/form-data"}}, "image"),
    ],
)
def test_a_form_that_does_not_fit_names_the_field_and_reaches_no_worker(
    client: httpx.Client, workers: Workers, sent: dict[str, Any], param: str | None
) -> None:
    response = client.post("/generate/video", **sent)

    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert "class" not in error["message"]
    assert workers.requests == []
