"""OpenAI's routes for pictures, speech and models: what reaches the worker, or a provider, and whom they serve."""

import json
import re
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.errors import Misconfigured
from services.registry import load_models
from services.schema import TOKEN_HEADER
from tests.gateway.conftest import PNG, Gateway, Workers, error_of
from tests.gateway.test_keys import bearer, create
from tests.gateway.test_provider_models import Outside, Start, first, outsides, run, second
from tests.gateway.test_receipts import TOKEN

__all__ = ["first", "outsides", "run", "second"]  # fixtures

BODIES: dict[str, dict[str, Any]] = {
    "/v1/images/generations": {"prompt": "a cat 世界", "n": 2, "size": "auto", "negative_prompt": "dogs"},
    "/v1/audio/speech": {"input": "Hello 世界.", "voice": {"id": "alto"}, "speed": 2},
}
EDITS = "/v1/images/edits"
by_route = pytest.mark.parametrize("route", BODIES)


@pytest.fixture
def workers(shared: tuple[Gateway, Workers]) -> Workers:
    shared[1].forget()
    return shared[1]


def parts(content_type: str, content: bytes) -> list[tuple[str, str | None, bytes]]:
    """The name, file name and content of each part of a form."""
    form = BytesParser().parsebytes(b"content-type: " + content_type.encode() + b"\r\n\r\n" + content)
    found = []
    for part in form.get_payload():
        assert isinstance(part, Message)
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        name = part.get_param("name", header="content-disposition")
        found.append((str(name), part.get_filename(), data))
    return found


@by_route
def test_a_body_goes_to_the_worker_byte_by_byte(client: httpx.Client, workers: Workers, route: str) -> None:
    content = json.dumps(BODIES[route], indent=3).encode()
    response = client.post(route, content=content, headers={"content-type": "application/json", "accept": "image/png"})

    assert response.content == b"firstsecondthird"
    [sent] = workers.requests
    assert (sent.url.path, sent.content, sent.headers["accept"]) == (route, content, "image/png")


@by_route
@pytest.mark.parametrize(("fields", "param"), [({"seed": -1}, "seed"), ({"emotion": "joy"}, "emotion")])
def test_what_the_worker_would_refuse_never_reaches_it(
    client: httpx.Client, workers: Workers, route: str, fields: dict[str, Any], param: str
) -> None:
    response = client.post(route, json={**BODIES[route], **fields})

    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert workers.requests == []


@by_route
def test_an_unknown_model_is_a_404_with_the_list(client: httpx.Client, workers: Workers, route: str) -> None:
    response = client.post(route, json={**BODIES[route], "model": "dall-e-3"})

    assert response.status_code == 404
    assert re.search("tiny-sd|bark-small", error_of(response)["message"])
    assert workers.requests == []


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_a_form_is_sent_again(client: httpx.Client, workers: Workers, name: str) -> None:
    files = [(name, ("cat.png", PNG)), ("mask", ("mask.png", b"mask"))]
    response = client.post(EDITS, files=files, data={"prompt": "a cat 世界", "n": "2", "stream": "false"})

    assert response.content == b"firstsecondthird"
    [sent] = workers.requests
    assert sent.url.path == EDITS
    assert sorted(parts(sent.headers["content-type"], sent.content)) == [
        (name, name, PNG),
        ("mask", "mask", b"mask"),
        ("n", None, b"2"),
        ("prompt", None, "a cat 世界".encode()),
        ("stream", None, b"false"),
    ]


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"json": {"prompt": "a"}}, "images"),
        ({"data": {"prompt": "a"}}, "image"),
        ({"data": {"prompt": "a", "image": "text"}, "files": {"mask": PNG}}, "image"),
        ({"data": {"prompt": "a"}, "files": {"mask": PNG}}, "image"),
        ({"data": {"prompt": "a"}, "files": {"image": PNG, "markup": PNG}}, "markup"),
        ({"data": {"prompt": ["a", "b"]}, "files": {"image": PNG}}, "prompt"),
        ({"data": {"prompt": "a", "strength": "2"}, "files": {"image": PNG}}, "strength"),
        ({"data": {"prompt": "a", "input_fidelity": "high"}, "files": {"image": PNG}}, "input_fidelity"),
        ({"files": {"image": PNG}}, "prompt"),
        ({"content": b"--x\r\nno", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "image"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_by_the_field(
    client: httpx.Client, workers: Workers, form: Any, param: str
) -> None:
    response = client.post(EDITS, **form)

    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert workers.requests == []


@pytest.mark.parametrize("route", [*BODIES, EDITS])
def test_a_key_is_for_its_tasks_and_models(start: Start, route: str) -> None:
    gateway = start()
    admin = create(gateway, scopes=["admin"])["key"]
    other = create(gateway, admin, scopes=["text"])["key"]
    image = create(gateway, admin, scopes=["image", "audio"], models=["another"])["key"]
    form: dict[str, Any] = {"files": {"image": PNG}, "data": {"prompt": "a"}} if route == EDITS else {}
    refused = [
        gateway.client.post(route, headers=bearer(key), **(form or {"json": BODIES[route]})) for key in (other, image)
    ]

    assert [error_of(each)["code"] for each in refused] == ["insufficient_scope", "model_not_allowed"]


@pytest.mark.parametrize("route", [*BODIES, EDITS])
def test_a_providers_model_gets_what_came_under_its_own_name(run: Start, first: Outside, route: str) -> None:
    task = "audio" if "audio" in route else "image"
    more = f'task = "{task}"'
    gateway = run(more)
    if route == EDITS:
        answer = gateway.client.post(route, files={"image": PNG}, data={"prompt": "a", "model": "gpt", "theirs": "1"})
    else:
        answer = gateway.client.post(route, json={**BODIES[route], "model": "gpt", "theirs": 1})
    [asked] = first.asked

    assert answer.status_code == 200
    assert (answer.headers["x-model"], asked.path) == ("gpt", route)
    if route == EDITS:
        sent = {name: data for name, _, data in parts(asked.headers["content-type"], asked.body)}
        assert sent == {"image": PNG, "prompt": b"a", "model": b"upstream-1", "theirs": b"1"}
    else:
        assert json.loads(asked.body) == {**BODIES[route], "model": "upstream-1", "theirs": 1}


def test_models_are_those_that_the_key_may_use(run: Start, second: Outside) -> None:
    busy = {"num_waiting": 3, "num_active": 2, "batch_size": 2}
    progress = {"phase": "downloading", "num_bytes": 1, "total_bytes": 3}
    listed = [
        {"id": "tiny-sd", "state": "loading", "num_bytes": 7, "progress": progress, **busy},
        {"id": "nobody's", "state": "ready"},
    ]
    second.chunks = (json.dumps({"data": listed}).encode(),)
    gateway = run()
    admin = create(gateway, scopes=["admin"])["key"]
    image = create(gateway, admin, scopes=["image"])["key"]
    named = create(gateway, admin, scopes=["text"], models=["gpt"])["key"]

    def models(key: str) -> dict[str, str]:
        found = gateway.client.get("/v1/models", headers=bearer(key)).json()["data"]
        return {model["id"]: model["state"] for model in found}

    assert models(image) == {"shapes": "failed", "tiny-sd": "loading"}
    assert models(named) == {"gpt": "external"}
    assert set(models(admin)) == {*(model.id for model in load_models()), "gpt", "other"}
    described = gateway.client.get("/v1/models/tiny-sd", headers=bearer(image)).json()
    assert {**described, "num_bytes": 7, "progress": progress, **busy} == described
    hidden = gateway.client.get("/v1/models/tiny-sd", headers=bearer(named))
    assert (hidden.status_code, error_of(hidden)["code"]) == (404, "model_not_found")
    assert gateway.client.get("/v1/models/gpt", headers=bearer(named)).json()["owned_by"] == "provider"


def test_an_operators_own_model_is_one_of_ours(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    entry = '[[models]]\nid = "own"\ntask = "image"\nfolder = { path = "own" }\n'
    adapter = '[[models.adapters]]\nname = "ink"\n[models.adapters.folder]\npath = "ink"\nlicence = "MIT"\n'
    file.write_text(entry + adapter, encoding="utf-8")
    gateway = start(models_file=file)

    own = gateway.client.get("/v1/models/own").json()
    assert (own["task"], own["owned_by"], own["revision"], own["licence"]) == ("image", "local", "folder:own", None)
    terms = {"licence": "MIT", "licence_url": None, "commercial_use": True}
    assert own["adapters"] == [{"name": "ink", **terms}]
    listed = gateway.client.get("/v1/models").json()["data"]
    assert {each["id"] for each in listed if not each["is_default"]} == {
        "own",
        "tinyllama-1.1b-chat",
        "bark-small",
        "tiny-sd",
        "stable-video-diffusion-img2vid",
        "wan2.1-t2v-1.3b",
        "shap-e",
        "shap-e-img2img",
    }
    file.write_text("[[models]", encoding="utf-8")
    with pytest.raises(Misconfigured, match=f"^ATELIER_MODELS_FILE: {file}: "):
        start(models_file=file)


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_an_admin_has_models_loaded_and_unloaded(start: Start, workers: Workers, verb: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[[models]]\nid = "our/own"\ntask = "image"\n[models.folder]\npath = "x"\n', encoding="utf-8")
    gateway = start(internal_token=TOKEN, models_file=file)
    admin = create(gateway, scopes=["admin"])["key"]
    image = create(gateway, admin, scopes=["image"])["key"]
    refused = gateway.client.post(f"/v1/models/our/own/{verb}", headers=bearer(image))
    unknown = gateway.client.post(f"/v1/models/gpt/{verb}", headers=bearer(admin))
    asked = [request for request in workers.requests if request.method == "POST"]
    told = gateway.client.post(f"/v1/models/our/own/{verb}", headers=bearer(admin))

    assert (refused.status_code, unknown.status_code, asked) == (403, 404, [])
    assert (told.status_code, told.json()["id"]) == (202, "our/own")
    [order] = [request for request in workers.requests if request.method == "POST"]
    assert order.url.path == f"/v1/models/our/own/{verb}"
    assert order.headers[TOKEN_HEADER] == TOKEN


def test_models_of_a_worker_that_is_away_are_unreachable(shared: tuple[Gateway, Workers], workers: Workers) -> None:
    workers.is_alive = False
    described = shared[0].client.get("/v1/models/bark-small")
    voices = shared[0].client.get("/v1/audio/voices")

    assert described.json()["state"] == "unreachable"
    assert described.json()["licence"] == "MIT"
    assert (voices.status_code, error_of(voices)["code"]) == (503, "worker_unavailable")


def test_a_model_with_slashes_is_asked_for_as_it_is(client: httpx.Client) -> None:
    refused = client.get("/v1/models/org/a/model")

    assert refused.status_code == 404
    assert "'org/a/model'" in error_of(refused)["message"]


def test_voices_are_the_workers_words(client: httpx.Client, workers: Workers) -> None:
    workers.streams_once(b'{"voices": ', b'["a"]}', content_type="application/json")
    listed = client.get("/v1/audio/voices")
    workers.refuses_in_envelope(404, "no such model", "model")
    refused = client.get("/v1/audio/voices", params={"model": "x"})

    assert listed.json() == {"voices": ["a"]}
    assert listed.headers["content-type"] == "application/json"
    assert workers.requests[-1].url.query == b"model=x"
    assert (refused.status_code, error_of(refused)["message"]) == (404, "no such model")
