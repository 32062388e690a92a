"""Models that another worker serves than that of their task, and kinds of models that are known by their entries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.schema import TOKEN_HEADER
from tests.gateway.conftest import PNG, WORKER, Gateway, Workers, error_of
from tests.gateway.test_jobs import DRAWN, create, ended, works
from tests.gateway.test_media import EDITS, parts
from tests.gateway.test_receipts import TOKEN

FAR = "http://far.test:3003"
OTHER = "http://other.test:3004"
DEFAULTS = 'defaults = { size = "64x64", num_frames = 5, fps = 8, num_inference_steps = 2, guidance_scale = 5.0 }'
FILE = f"""
[[models]]
id = "far"
task = "image"
defaults = {{ size = "64x64" }}
[models.external]
url = "{FAR}/"
licence = "MIT"

[[models]]
id = "far-too"
task = "image"
[models.external]
url = "{FAR}"

[[models]]
id = "far-wan"
task = "video"
input_modalities = ["text"]
{DEFAULTS}
[models.external]
url = "{OTHER}"

[[models]]
id = "far-bark"
task = "audio"
voices = {{ alloy = "v2/en_speaker_6" }}
[models.external]
url = "{FAR}"

[[models]]
id = "near"
task = "image"
schedulers = ["ddim", "euler"]
defaults = {{ size = "64x64" }}
adapters = [{{ name = "ink", folder = {{ path = "ink" }} }}]
[models.folder]
path = "near"
strategy = "swap"

[[models]]
id = "near-wan"
task = "video"
input_modalities = ["text"]
{DEFAULTS}
[models.folder]
path = "wan"
"""

Start = Callable[..., Gateway]


@pytest.fixture
def begin(start: Start, tmp_path: Path) -> Start:
    """Start a gateway with models of the operator's own."""

    def begin_gateway(text: str = FILE, **changes: Any) -> Gateway:
        file = tmp_path / "models.toml"
        file.write_text(text, encoding="utf-8")
        return start(models_file=file, **changes)

    return begin_gateway


def base(request: httpx.Request) -> str:
    return str(request.url).split("/v1/")[0]


def listing(**states: str) -> Callable[[httpx.Request], Any]:
    """Answer for models as the worker elsewhere does; ours is away."""

    async def answer(request: httpx.Request) -> httpx.Response:
        if base(request) == WORKER:
            raise httpx.ConnectError("refused", request=request)
        data = [{"id": model, "state": state, "num_bytes": 7} for model, state in states.items()]
        return httpx.Response(200, json={"data": data})

    return answer


def replaced(model: str, task: str, more: str = "") -> str:
    """An entry in place of one of ours."""
    return f'[[models]]\nid = "{model}"\ntask = "{task}"\n{more}\n[models.external]\nurl = "{FAR}"\n'


class TestWhereItGoes:
    def test_a_body_goes_to_the_worker_that_has_the_model(self, begin: Start, workers: Workers) -> None:
        client = begin(internal_token=TOKEN).client
        for model in ("far", "near", "tiny-sd", None):
            body = {"prompt": "a"} if model is None else {"prompt": "a", "model": model}
            assert client.post("/v1/images/generations", json=body).status_code == 200

        assert [base(each) for each in workers.requests] == [FAR, WORKER, WORKER, WORKER]
        assert {each.headers[TOKEN_HEADER] for each in workers.requests} == {TOKEN}
        assert json.loads(workers.requests[0].content) == {"prompt": "a", "model": "far"}

    def test_a_form_does_too(self, begin: Start, workers: Workers) -> None:
        answer = begin().client.post(EDITS, files={"image": PNG}, data={"prompt": "a", "model": "far"})
        [sent] = workers.requests

        assert (answer.status_code, base(sent)) == (200, FAR)
        assert ("model", None, b"far") in parts(sent.headers["content-type"], sent.content)

    @pytest.mark.parametrize("path", ["/generate/image?prompt=a", "/v1/images/generations"])
    def test_what_names_no_model_goes_where_the_first_one_is(self, begin: Start, workers: Workers, path: str) -> None:
        client = begin(replaced("shapes", "image", 'defaults = { size = "64x64" }')).client
        answer = client.get(path) if "?" in path else client.post(path, json={"prompt": "a"})
        [sent] = workers.requests

        assert (answer.status_code, base(sent)) == (200, FAR)
        assert json.loads(sent.content) == {"prompt": "a", "model": "shapes"}

    def test_a_worker_without_models_is_not_waited_for(self, begin: Start, workers: Workers) -> None:
        health = begin(replaced("shapes", "image") + replaced("tiny-sd", "image")).client.get("/readyz").json()

        assert set(health["workers"]) == {"text", "audio", "video", "mesh"}

    def test_jobs_go_there_too(self, begin: Start, workers: Workers) -> None:
        works(workers)
        client = begin().client
        body = {"prompt": "a", "model": "far"}
        named = {**DRAWN, "body": body}
        for steps in ([named], [DRAWN], [named, {"route": EDITS, "body": {"prompt": "a", "model": "far"}}]):
            job = ended(client, create(client, "/v1/jobs", {"steps": steps})["id"])
            assert job["status"] == "completed", job["error"]
        preferred = create(client, "/v1/images/generations", body, {"prefer": "respond-async"})
        assert ended(client, preferred["id"])["status"] == "completed"

        assert [base(each) for each in workers.requests] == [FAR, WORKER, FAR, FAR, FAR]

    def test_a_job_that_names_ours_does_not_go_where_the_default_is(self, begin: Start, workers: Workers) -> None:
        works(workers)
        client = begin(replaced("shapes", "image", 'defaults = { size = "64x64" }') + FILE).client
        steps = [[{**DRAWN, "body": {"prompt": "a", "model": "near"}}], [DRAWN]]
        for each in steps:
            ended(client, create(client, "/v1/jobs", {"steps": each})["id"])

        assert [base(each) for each in workers.requests] == [WORKER, FAR]

    def test_an_entry_may_say_nothing_of_defaults(self, begin: Start, workers: Workers) -> None:
        works(workers)
        text = replaced("wan", "video", 'input_modalities = ["text"]') + replaced("far-too", "image")
        client = begin(text).client
        body = {"prompt": "a", "model": "far-too", "response_format": "url"}
        drawn = client.post("/v1/images/generations", json=body)
        refused = client.post("/v1/videos", json={"prompt": "a", "model": "wan", "seconds": 1})

        assert (drawn.status_code, drawn.json()["size"]) == (200, "auto")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "size")

    def test_a_fallback_may_be_there(self, begin: Start, workers: Workers, tmp_path: Path) -> None:
        file = tmp_path / "providers.toml"
        file.write_text('[fallbacks]\n"shapes" = ["far"]\n', encoding="utf-8")

        async def answer(request: httpx.Request) -> httpx.Response:
            answered = workers.stream(b"{}")
            answered.status_code = 200 if base(request) == FAR else 503
            return answered

        workers.answer = answer
        answered = begin(providers_file=file).client.post("/v1/images/generations", json={"prompt": "a"})

        assert answered.status_code == 200
        assert json.loads(workers.requests[-1].content)["model"] == "far"

    def test_voices_are_asked_for_there(self, begin: Start, workers: Workers) -> None:
        client = begin().client
        client.get("/v1/audio/voices", params={"model": "far-bark"})
        client.get("/v1/audio/voices")

        assert [base(each) for each in workers.requests] == [FAR, WORKER]


class TestHowItIs:
    def test_its_state_is_what_its_worker_says(self, begin: Start, workers: Workers) -> None:
        workers.answer = listing(far="loading")
        listed = {each["id"]: each for each in begin().client.get("/v1/models").json()["data"]}

        assert (listed["far"]["state"], listed["far"]["strategy"], listed["far"]["num_bytes"]) == (
            "loading",
            "external",
            7,
        )
        assert (listed["far"]["licence"], listed["far"]["revision"]) == ("MIT", None)
        assert (listed["far-too"]["state"], listed["near"]["state"]) == ("failed", "unreachable")
        assert "does not know this model" in listed["far-too"]["failure"]
        assert sum(base(each) == FAR for each in workers.requests) == 1  # for three models

    def test_it_is_loaded_there(self, begin: Start, workers: Workers) -> None:
        workers.answer = listing(far="loading")
        told = begin(internal_token=TOKEN).client.post("/v1/models/far/load")
        [order] = [each for each in workers.requests if each.method == "POST"]

        assert (told.status_code, told.json()["state"]) == (202, "loading")
        assert (str(order.url), order.headers[TOKEN_HEADER]) == (f"{FAR}/v1/models/far/load", TOKEN)

    def test_what_a_model_offers_is_listed(self, begin: Start) -> None:
        listed = {each["id"]: each for each in begin().client.get("/v1/models").json()["data"]}

        assert "What is Atelier?" in listed["chat"]["examples"]
        assert listed["near"]["examples"] == []
        assert listed["near"]["schedulers"] == ["ddim", "euler"]
        assert listed["tiny-sd"]["schedulers"] == ["ddim", "dpmpp_2m", "euler", "euler_a", "pndm"]
        assert listed["far-bark"]["voices"] == ["alloy"]
        assert "v2/en_speaker_0" in listed["bark-small"]["voices"]
        assert listed["tinyllama-1.1b-chat"]["voices"] is listed["tinyllama-1.1b-chat"]["schedulers"] is None
        assert {each: listed[each]["strategy"] for each in ("near", "near-wan", "far-wan")} == {
            "near": "swap",
            "near-wan": "preload",
            "far-wan": "external",
        }
        assert listed["near-wan"]["input_modalities"] == ["text"]


class TestKinds:
    @pytest.mark.parametrize(("model", "where"), [("near-wan", WORKER), ("far-wan", OTHER)])
    def test_another_wan_is_an_entry(self, begin: Start, workers: Workers, model: str, where: str) -> None:
        works(workers)
        client = begin().client
        made = create(client, "/v1/videos", {"prompt": "a", "seconds": 1, "model": model})
        assert ended(client, made["id"])["status"] == "completed"
        [sent] = workers.requests
        fields = {name: value for name, _, value in parts(sent.headers["content-type"], sent.content)}

        assert (base(sent), fields["num_frames"], fields["fps"]) == (where, b"9", b"8")
        refused = client.post("/v1/videos", data={"model": model}, files={"input_reference": PNG})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "input_reference")
        assert f"'{model}', which works from a prompt" in error_of(refused)["message"]

    def test_who_names_none_is_served_by_the_first_that_takes_what_is_there(
        self, begin: Start, workers: Workers
    ) -> None:
        works(workers)
        text = replaced("solids", "mesh", 'input_modalities = ["image"]') + replaced(
            "solids-img2img", "mesh", 'input_modalities = ["text"]'
        )
        client = begin(text).client
        for body in ({"prompt": "a"}, {"image": "AAAA"}):
            ended(client, create(client, "/v1/3d/generations", body)["id"])
        client.get("/generate/3d", params={"prompt": "a"})

        models = [json.loads(each.content)["model"] for each in workers.requests]
        assert models == ["solids-img2img", "solids", "solids-img2img"]

    def test_where_none_takes_what_is_there_it_is_refused(self, begin: Start, workers: Workers) -> None:
        all_of_them = ("solids", "solids-img2img", "shap-e", "shap-e-img2img")
        client = begin("".join(replaced(each, "mesh", 'input_modalities = ["image"]') for each in all_of_them)).client
        refused = client.post("/v1/3d/generations", json={"prompt": "a"})

        assert (refused.status_code, error_of(refused)["param"]) == (400, "image")
        assert "pictures alone" in error_of(refused)["message"]
        assert client.get("/generate/3d", params={"prompt": "a"}).status_code == 400
        assert workers.requests == []

    def test_a_providers_film_is_no_job_of_ours(self, begin: Start, tmp_path: Path) -> None:
        file = tmp_path / "providers.toml"
        file.write_text('[[models]]\nid = "sora"\ntask = "video"\nbase_url = "http://a.test/v1"\n', encoding="utf-8")
        refused = begin(providers_file=file).client.post("/v1/videos", json={"prompt": "a", "model": "sora"})

        assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")


NAMED = {("voice", "invalid_value"), ("scheduler", "invalid_value"), ("adapter", "unknown_adapter")}
SPEECH = {"input": "Hi.", "voice": "echo"}
SOLVED = {"prompt": "a", "scheduler": "pndm"}
INKED = {"prompt": "a", "adapter": "oil"}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/audio/speech", {**SPEECH, "model": "far-bark"}, "'echo' for model 'far-bark'; choose one of: alloy"),
        ("/v1/audio/speech", SPEECH, "no voice 'echo' for model 'letters'; choose one of: bass, tenor, "),
        ("/v1/images/generations", {**SOLVED, "model": "near"}, "'pndm' for model 'near'; choose one of: ddim, euler"),
        ("/v1/images/generations", {**INKED, "model": "near"}, "no adapter 'oil' for model 'near'; choose one of: ink"),
        ("/v1/images/generations", INKED, "no adapter 'oil' for model 'shapes'; choose one of: night"),
        ("/v1/images/generations", {**INKED, "model": "tiny-sd"}, "no adapter 'oil' for model 'tiny-sd'; leave it out"),
        ("/v1/completions", INKED, "no adapter 'oil' for model 'chat'; choose one of: pirate"),
    ],
)  # fmt: skip
def test_what_a_model_does_not_offer_is_refused_before_anybody_waits(
    begin: Start, workers: Workers, path: str, body: dict[str, Any], said: str
) -> None:
    client = begin().client
    refused = [client.post(path, json=body), client.post("/v1/jobs", json={"steps": [{"route": path, "body": body}]})]

    for each in refused:
        assert each.status_code == 400
        assert said in error_of(each)["message"]
        assert (error_of(each)["param"], error_of(each)["code"]) in NAMED
    assert workers.requests == []
    assert client.post("/v1/images/generations", json={**SOLVED, "model": "tiny-sd"}).status_code == 200


@pytest.mark.parametrize(("kind", "field"), [("audio", "preset"), ("image", "adapter"), ("text", "adapter")])
@pytest.mark.parametrize("headers", [{}, {"prefer": "respond-async"}])
def test_the_books_routes_refuse_it_by_the_names_that_they_have(
    begin: Start, workers: Workers, kind: str, field: str, headers: dict[str, str]
) -> None:
    query = {"prompt": "Hi.", field: "echo"}
    refused = begin().client.get(f"/generate/{kind}", params=query, headers=headers)

    assert (refused.status_code, error_of(refused)["param"]) == (400, field)
    assert workers.requests == []
