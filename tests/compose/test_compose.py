"""docker-compose.yml for real: every route through the containers, what breaks and heals, and nothing left of it.

The tests go from a whole system to none: in the order in which they stand here.
"""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.registry import load_models
from services.tiny.build import ensure
from tests.compose.conftest import TORCH, Composed
from tests.compose.engine import BASE, Engine
from tests.live.pictures import png
from tests.services.hubs import Hub, files_of, serving

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
SERVICES = ("gateway", "ui", "text", "audio", "image", "video", "mesh", "postgres", "redis")
WORKERS = ("text", "audio", "image", "video", "mesh")
CHAT, SD = "tinyllama-1.1b-chat", "tiny-sd"
DRAWN = {"prompt": "a tree", "num_inference_steps": 2}
FRAMES = {"num_frames": "3"}
SCULPTED = {"prompt": "a large red cube"}
TEXT = "/generate/text?prompt=Hello"
PACKAGES = "import importlib.metadata as m; print(*(d.metadata['Name'].lower() for d in m.distributions()))"


class Recorder:
    """Remembers which routes were asked and answered well."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.paths: dict[str, dict[str, Any]] = client.get("/openapi.json").json()["paths"]
        self.answered: set[tuple[str, str]] = set()

    def __call__(self, method: str, path: str, status: int = 200, **options: Any) -> httpx.Response:
        response = self._client.request(method, path, **options)
        assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text[:500]}"
        self.answered.add((method, self.template(response.url.path)))
        return response

    def template(self, path: str) -> str:
        """The route that a path belongs to: of several the most literal."""
        fits = [each for each in self.paths if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", each), path)]
        return min(fits, key=lambda each: each.count("{"))

    @property
    def left(self) -> set[tuple[str, str]]:
        """The operations that nobody has asked for."""
        return {(method.upper(), path) for path, methods in self.paths.items() for method in methods} - self.answered


# --- the images ---


def size(engine: Engine, image: str) -> int:
    return int(engine.docker("image", "inspect", "--format", "{{.Size}}", image))


def packages(engine: Engine, image: str) -> set[str]:
    return set(engine.docker("run", "--rm", "--network=none", "--entrypoint=python", image, "-c", PACKAGES).split())


def test_the_gateways_image_is_small_and_has_no_model_library(composed: Composed) -> None:
    engine = composed.engine

    assert size(engine, "atelier-gateway") - size(engine, BASE) <= 200e6
    assert packages(engine, "atelier-gateway").isdisjoint({"torch", "transformers", "bentoml", "numpy"})


def test_the_workers_image_has_the_chosen_torch_and_no_cuda(composed: Composed) -> None:
    found = packages(composed.engine, "atelier-worker")

    assert size(composed.engine, "atelier-worker") < 3e9
    assert TORCH.partition("==")[0] in found
    assert [name for name in found if re.match("triton|cuda-|nvidia-(?!ml-py)", name)] == []


# --- the containers ---


def test_the_first_key_is_where_it_is_said_to_be(composed: Composed) -> None:
    assert composed.said == f"The first admin key is in {composed.folder / 'secrets' / 'admin_key'}\n"
    assert httpx.get(f"{composed.url}/v1/keys").status_code == 401
    assert composed.answers("/v1/keys") == 200


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_may_do_no_more_than_it_must(composed: Composed, service: str) -> None:
    found = json.loads(composed.inspect(service, "{{json .}}"))
    host, secrets = found["HostConfig"], [file.read_text().strip() for file in (composed.folder / "secrets").iterdir()]

    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert found["Config"]["User"].partition(":")[0] not in {"", "0", "root"}
    assert len(secrets) == 6
    assert not any(secret in line for secret in filter(None, secrets) for line in found["Config"]["Env"])
    is_public = service in {"gateway", "ui"}
    published = [each["HostIp"] for ports in host["PortBindings"].values() for each in ports]
    assert published == ["127.0.0.1"] * is_public


def test_each_worker_may_have_a_gpu_that_is_named(composed: Composed) -> None:
    """As Compose reads the overlay: there is no GPU to start it with."""
    files = ("--file", "docker-compose.yml", "--file", "docker-compose.gpu.yml")
    read = json.loads(composed.compose(*files, "config", "--format", "json", IMAGE_GPU="1"))["services"]
    reserved = {task: read[task]["deploy"]["resources"]["reservations"]["devices"] for task in WORKERS}

    assert {task: devices[0]["device_ids"] for task, devices in reserved.items()} == {
        task: ["1" if task == "image" else "0"] for task in WORKERS
    }


def test_the_studio_answers(composed: Composed) -> None:
    assert httpx.get(f"http://127.0.0.1:{composed.ports[1]}/", follow_redirects=True).status_code == 200


def test_the_gateway_keeps_its_books_in_postgres(composed: Composed) -> None:
    psql = ("psql", "--username=atelier", "--no-align", "--tuples-only", "--command=SELECT owner FROM keys")

    assert composed.compose("exec", "-T", "postgres", *psql).split() == ["operator"]


# --- the routes ---


def ended(call: Recorder, composed: Composed, path: str) -> dict[str, Any]:
    """What a job is in the end."""
    job: dict[str, Any] = {}

    def is_over() -> bool:
        job.update(call("GET", path).json())
        return job["status"] in {"completed", "failed", "cancelled"}

    composed.wait(is_over)
    return job


@pytest.fixture(scope="module")
def call(client: httpx.Client) -> Recorder:
    return Recorder(client)


def generate(call: Recorder) -> None:
    call("GET", "/generate/text", params={"prompt": "Hello"})
    call("GET", "/generate/audio", params={"prompt": "Hello."})
    picture = call("GET", "/generate/image", params=DRAWN).content
    call("GET", "/generate/bentoml/image", params=DRAWN)
    assert call("POST", "/generate/video", files={"image": ("a.png", picture)}, data=FRAMES).content[4:8] == b"ftyp"
    call("GET", "/generate/3d", params=SCULPTED)
    call("GET", "/generate/openai/text", 503, params={"prompt": "Hello"})  # there is no provider


def speak_openai(call: Recorder) -> None:
    asked = {"model": CHAT, "max_tokens": 4}
    call("POST", "/v1/chat/completions", json={**asked, "messages": [{"role": "user", "content": "Hello"}]})
    call("POST", "/v1/completions", json={**asked, "prompt": "Hello"})
    call("POST", "/v1/responses", json={"model": CHAT, "input": "Hello", "max_output_tokens": 4})
    call("POST", "/v1/images/generations", json=DRAWN)
    drawn = {**DRAWN, "response_format": "url"}
    link = call("POST", "/v1/images/generations", json=drawn).json()["data"][0]["url"]
    assert httpx.get(link).content[:4] == b"\x89PNG"
    call(
        "POST",
        "/v1/images/edits",
        files={"image": ("a.png", png())},
        data={name: str(value) for name, value in DRAWN.items()},
    )
    call("POST", "/v1/audio/speech", json={"input": "Hello."})
    call("GET", "/v1/audio/voices")


def look_after_models(call: Recorder) -> None:
    assert {model["id"] for model in call("GET", "/v1/models").json()["data"]} >= {CHAT, SD}
    call("GET", f"/v1/models/{SD}")
    call("POST", f"/v1/models/{SD}/load", 202)
    call("POST", f"/v1/models/{SD}/unload", 202)


def work_on_jobs(call: Recorder, composed: Composed) -> None:
    steps = [{"route": "/v1/images/generations", "body": DRAWN}]
    job = call("POST", "/v1/jobs", 202, json={"steps": steps}).json()["id"]
    assert ended(call, composed, f"/v1/jobs/{job}")["status"] == "completed"
    call("GET", "/v1/jobs")
    call("GET", f"/v1/jobs/{job}/events")
    call("GET", f"/v1/jobs/{job}/content")
    slow = call("POST", "/v1/jobs", 202, json={"steps": [{**steps[0], "body": {**DRAWN, "num_inference_steps": 100}}]})
    job = slow.json()["id"]
    call("POST", f"/v1/jobs/{job}/cancel")
    assert ended(call, composed, f"/v1/jobs/{job}")["status"] == "cancelled"
    call("POST", f"/v1/jobs/{job}/retry", 202)
    call("DELETE", f"/v1/jobs/{job}")
    spoken = [{"route": "/v1/audio/speech", "body": {"input": "Hello."}}]
    job = call("POST", "/v1/jobs", 202, json={"steps": spoken}).json()["id"]
    assert call("GET", f"/v1/jobs/{job}/sound").headers["content-type"] == "audio/mpeg"


def film_and_sculpt(call: Recorder, composed: Composed) -> None:
    film = call("POST", "/v1/videos", json={**DRAWN, "num_frames": 5}).json()["id"]
    mesh = call("POST", "/v1/3d/generations", 202, json=SCULPTED).json()["id"]
    for path in (f"/v1/videos/{film}", f"/v1/3d/{mesh}"):
        assert ended(call, composed, path)["status"] == "completed"
        file = call("GET", f"{path}/content").content
        assert file[4:8] == b"ftyp" or file[:4] == b"glTF"
        call("POST", "/v1/content_provenance_checks", files={"file": ("file", file)})
        call("DELETE", path)
    call("GET", "/v1/videos")
    call("GET", "/v1/3d")


def operate(call: Recorder) -> None:
    call("GET", "/livez")
    call("GET", "/readyz")
    call("GET", "/v1/usage")
    call("GET", "/v1/usage/summary")
    call("GET", "/v1/budgets")
    call("GET", "/v1/webhooks/secret")
    call("POST", "/v1/signed_urls", json={"path": TEXT})
    key = call("POST", "/v1/keys", 201, json={"owner": "ada", "requests_per_minute": 60}).json()["id"]
    call("GET", "/v1/keys")
    call("GET", f"/v1/keys/{key}")
    call("PATCH", f"/v1/keys/{key}", json={"owner": "eve"})
    call("DELETE", f"/v1/keys/{key}")


def test_every_route_answers(call: Recorder, composed: Composed) -> None:
    generate(call)
    speak_openai(call)
    look_after_models(call)
    work_on_jobs(call, composed)
    film_and_sculpt(call, composed)
    operate(call)

    assert call.left == set()


def test_workers_have_told_what_they_made(client: httpx.Client, composed: Composed) -> None:
    def units() -> set[str]:
        rows = client.get("/v1/usage", params={"limit": 100}).json()["data"]
        return {unit for row in rows for unit in row["units"] or {}}

    composed.wait(lambda: units() >= {"tokens", "audio_seconds", "pixel_steps", "frames", "meshes"})


# --- other weights, and more workers ---


def test_real_weights_come_from_the_hub_into_their_volume(
    composed: Composed, client: httpx.Client, tmp_path: Path
) -> None:
    """Those of a hub that has a small model under the name of the real one."""
    source = next(model.hub for model in load_models() if model.id == CHAT)
    assert source is not None
    files = files_of(ensure("text", tmp_path))
    tokenizer = json.loads(files["tokenizer_config.json"])  # where the real one has its template
    tokenizer["chat_template"] = files.pop("chat_template.jinja").decode()
    files["tokenizer_config.json"] = json.dumps(tokenizer).encode()
    gateway = ("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "atelier_workers")
    host = composed.engine.docker(*gateway).strip()
    restart = ("up", "--detach", "--wait", "--no-deps", "text")
    settings = composed.folder / "atelier.env"
    with serving(Hub(files, source.repository, source.revision, host)) as hub:
        settings.write_text(f"HF_ENDPOINT={hub.url}\n")
        composed.compose(*restart, ATELIER_PROFILE="hub")
        composed.wait(lambda: composed.answers("/readyz") == 200)
        question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}  # small is small
        answer = client.post("/v1/chat/completions", json=question)
        found = composed.compose("exec", "-T", "text", "find", "/weights/hub", "-name", "model.safetensors")
    assert answer.json()["usage"]["completion_tokens"] <= 8
    assert re.fullmatch(rf"/weights/hub/.*/{source.revision}/model.safetensors\n", found)
    assert any(path.endswith("/model.safetensors") for path in hub.asked)

    settings.unlink()
    composed.compose(*restart)
    composed.wait(lambda: composed.answers(TEXT) == 200)


def generations(composed: Composed, container: str) -> float:
    """How many a worker has finished."""
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:3000/metrics').read().decode())"
    series = composed.engine.docker("exec", container, "python", "-c", ask)
    return sum(map(float, re.findall(r"^atelier_generations_total\{.*\} (\S+)$", series, re.MULTILINE)))


def test_another_worker_is_found_and_missed_again(composed: Composed, client: httpx.Client) -> None:
    def replicas() -> dict[str, int]:
        found: dict[str, int] = client.get("/readyz").json()["replicas"]["image"]
        return found

    first = composed.container("image")
    composed.compose("up", "--detach", "--wait", "--no-deps", "--scale", "image=2", "image")
    composed.wait(lambda: replicas() == {"ready": 2, "all": 2})
    (second,) = set(composed.containers("image")) - {first}
    composed.wait(
        lambda: composed.answers("/generate/image", params=DRAWN) == 200 and generations(composed, second) > 0
    )

    composed.compose("up", "--detach", "--wait", "--no-deps", "--scale", "image=1", "image")
    composed.wait(lambda: replicas() == {"ready": 1, "all": 1})
    assert composed.answers("/generate/image", params=DRAWN) == 200


# --- what breaks, and heals ---


def killed(composed: Composed, service: str) -> None:
    """Kill all of a container's processes, as the kernel does where memory runs out."""
    os.kill(int(composed.inspect(service, "{{.State.Pid}}")), signal.SIGKILL)


def test_a_killed_worker_comes_back(composed: Composed) -> None:
    killed(composed, "image")

    composed.wait(lambda: composed.inspect("image", "{{.RestartCount}}") == "1")
    assert composed.answers(TEXT) == 200
    composed.wait(lambda: composed.answers("/generate/image", params=DRAWN) == 200)


def test_a_worker_whose_inner_process_is_killed_comes_back(composed: Composed) -> None:
    inner = max(map(int, composed.engine.docker("top", composed.container("text"), "-eo", "pid").split()[1:]))
    os.kill(inner, signal.SIGKILL)

    composed.wait(lambda: composed.inspect("text", "{{.RestartCount}}") == "1")
    composed.wait(lambda: composed.answers(TEXT) == 200)


def test_a_worker_that_is_cut_off_is_missed_alone_and_found_again(composed: Composed) -> None:
    composed.engine.docker("network", "disconnect", "atelier_workers", composed.container("text"))
    composed.wait(lambda: composed.answers(TEXT) in {502, 503})
    assert composed.answers("/generate/image", params=DRAWN) == 200
    assert composed.answers("/readyz") == 503

    composed.engine.docker("network", "connect", "--alias", "text", "atelier_workers", composed.container("text"))
    composed.wait(lambda: composed.answers(TEXT) == 200)


def test_accepted_jobs_outlive_the_database_and_the_gateway(
    composed: Composed, client: httpx.Client, call: Recorder
) -> None:
    steps = [{"route": "/v1/images/generations", "body": {**DRAWN, "num_inference_steps": 20}}]
    jobs = [client.post("/v1/jobs", json={"steps": steps}).json()["id"] for _ in range(3)]

    composed.compose("restart", "postgres")
    composed.wait(lambda: composed.answers("/v1/jobs") == 200)
    killed(composed, "gateway")
    composed.wait(lambda: composed.answers("/v1/jobs") == 200)

    statuses = [ended(call, composed, f"/v1/jobs/{job}")["status"] for job in jobs]
    assert statuses == ["completed"] * 3


def test_what_was_backed_up_is_there_again(composed: Composed, client: httpx.Client, call: Recorder) -> None:
    back_up, restore = re.findall(r"```sh\n(docker compose .*?)```", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    job = client.post("/v1/images/generations", json=DRAWN, headers={"prefer": "respond-async"}).json()["id"]
    path = f"/v1/jobs/{job}"
    ended(call, composed, path)
    picture = client.get(f"{path}/content").content
    composed.run(back_up)
    client.delete(path).raise_for_status()
    composed.engine.docker("exec", composed.container("gateway"), "rm", "-r", "/data/artefacts")
    assert composed.answers(path) == 404

    composed.run(restore)
    composed.wait(lambda: composed.answers(path) == 200)
    assert picture.startswith(b"\x89PNG")
    assert client.get(f"{path}/content").content == picture


def test_down_leaves_nothing(composed: Composed) -> None:
    composed.compose("down", "--volumes", "--timeout", "20")

    listings: tuple[Callable[[], str], ...] = (
        lambda: composed.engine.docker("ps", "--all", "--quiet"),
        lambda: composed.engine.docker("volume", "ls", "--quiet"),
        lambda: composed.engine.docker("network", "ls", "--quiet", "--filter", "type=custom"),
    )
    assert [listing() for listing in listings] == ["", "", ""]
