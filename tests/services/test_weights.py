"""Weights: from the tiny recipes or from the hub at a pinned revision, and one clear sentence where they are missing.

The hub's client reads its endpoint when it is imported, so what asks a hub runs in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from prometheus_client import CollectorRegistry

from services.engine.assembly import build_engine, licence_refusal
from services.engine.generation import Terms
from services.engine.placement import best_device, choose_placement
from services.engine.stepper import Stepper
from services.engine.weights import load_pipeline, open_weights
from services.errors import ModelUnavailable
from services.registry import Model, load_models
from services.settings import Settings
from tests.services.conftest import LONG

REPOSITORY = Path(__file__).parents[2]
REVISION = "0123456789abcdef0123456789abcdef01234567"
MODELS = {model.id: model for model in load_models()}

# Runs the steps named on its command line and prints a line of JSON for each.
PROGRAM = """
import json, sys
from services.engine.stepper import Stepper
from services.engine.weights import open_weights
from services.errors import ModelUnavailable
from services.registry import Model
from services.settings import Settings

settings = Settings(profile="hub")
for entry, step in json.loads(sys.argv[1]):
    try:
        model = Model.model_validate(entry)
        if step == "open":
            said = str(open_weights(model, settings).folder)
        else:
            from services.text.engine import TextStepper
            said = type(TextStepper(model, settings)).__name__
    except ModelUnavailable as error:
        said = f"{error.status}: {error.message}"
    print(json.dumps(said))
"""


class Hub:
    """A hub of one repository at one revision; remembers what it was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        if handler.command == "GET":
            self.asked.append(path)
        resolved = f"/test/tiny/resolve/{REVISION}/"
        if path.rstrip("/") == f"/api/models/test/tiny/tree/{REVISION}":
            body, kind = json.dumps(self.tree()).encode(), "application/json"
        elif path.startswith(resolved) and path.removeprefix(resolved) in self.files:
            body, kind = self.files[path.removeprefix(resolved)], "application/octet-stream"
        else:
            handler.send_response(404)
            is_known = path.startswith(("/test/tiny/", "/api/models/test/tiny/"))
            handler.send_header("x-error-code", "RevisionNotFound" if is_known else "RepoNotFound")
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        handler.send_response(200)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(body)))
        handler.send_header("etag", f'"{hashlib.sha1(body, usedforsecurity=False).hexdigest()}"')
        handler.send_header("x-repo-commit", REVISION)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    def tree(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
            }
            for path, content in self.files.items()
        ]


@pytest.fixture
def hub(data_dir: Path) -> Iterator[Hub]:
    checkpoint = data_dir / "tiny" / "text"
    files = {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    hub = Hub({**files, "README.md": b"#", "pytorch_model.bin": b"pickle", "extra/other.safetensors": b"too much"})
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join(LONG)
    hub.server.server_close()


def entry(**changes: Any) -> dict[str, Any]:
    source = {
        "repository": "test/tiny",
        "revision": REVISION,
        "licence": "MIT",
        "licence_url": "https://example.org/licence",
        "commercial_use": True,
        "strategy": "on_demand",
        "files": ["*.json", "model.safetensors"],
        "size_gb": 0.1,
    }
    return {"id": "tiny", "task": "text", "tiny": {"recipe": "text"}, "hub": {**source, **changes}}


def run_steps(home: Path, *steps: tuple[dict[str, Any], str], **environment: str) -> list[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(steps)],
        cwd=REPOSITORY,
        env={**ours, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=3 * LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hubs_weights_are_fetched_by_pattern_at_the_pinned_revision_and_then_kept(hub: Hub, tmp_path: Path) -> None:
    folder, again, no_revision, no_repository = run_steps(
        tmp_path,
        (entry(), "open"),
        (entry(), "open"),
        (entry(revision="f" * 40), "open"),
        (entry(repository="test/other"), "open"),
        HF_ENDPOINT=hub.url,
    )

    fetched = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert fetched == {path for path in hub.files if path.endswith(".json") or path == "model.safetensors"}
    assert Path(folder).name == REVISION
    asked = [path for path in hub.asked if path.startswith(("/test/tiny/", "/api/models/test/tiny/"))]
    assert all(REVISION in path or "f" * 40 in path for path in asked)
    assert again == folder
    assert len(set(asked)) == len(asked)  # the second time, nothing was asked
    for sentence in (no_revision, no_repository):
        assert sentence.startswith("503: model 'tiny' could not be fetched from the hub (test/")
        assert "\n" not in sentence

    # The same files, without a network.
    loaded, missing = run_steps(tmp_path, (entry(), "load"), (entry(revision="e" * 40), "open"), HF_HUB_OFFLINE="1")
    assert loaded == "TextStepper"
    assert missing.startswith("503: model 'tiny' could not be fetched from the hub (test/tiny at eeeeeee, 0.1 GB)")
    assert "HF_HUB_OFFLINE" in missing


# --- licences ---


def test_a_licence_without_commercial_use_has_to_be_accepted_by_name() -> None:
    model = MODELS["stable-video-diffusion-img2vid"]

    refusal = licence_refusal(model, Settings(profile="hub", accept_licences=frozenset({"another"})))

    assert refusal is not None
    assert f"ATELIER_ACCEPT_LICENCES={model.id}" in refusal
    assert model.hub.licence in refusal
    assert model.hub.licence_url in refusal
    assert licence_refusal(model, Settings(profile="hub", accept_licences=frozenset({model.id}))) is None


def test_a_licence_is_asked_for_before_anything_is_loaded(tmp_path: Path) -> None:
    settings = Settings(profile="hub", data_dir=tmp_path)
    engine = build_engine("video", never, settings, CollectorRegistry())

    with pytest.raises(ModelUnavailable, match="ATELIER_ACCEPT_LICENCES"):
        engine.submit(None, None, None, Terms(LONG))


def never(model: Model, settings: Settings) -> Stepper[Any]:
    raise AssertionError("nothing is to be loaded")


def test_a_free_licence_needs_no_word() -> None:
    assert licence_refusal(MODELS["shap-e"], Settings(profile="hub")) is None


def test_a_tiny_checkpoint_needs_no_word() -> None:
    assert licence_refusal(MODELS["stable-video-diffusion-img2vid"], Settings(profile="tiny")) is None


def test_licences_are_accepted_by_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_ACCEPT_LICENCES", "one, two,,")

    assert Settings().accept_licences == {"one", "two"}


# --- tiny ---


def test_a_tiny_checkpoint_is_built_where_it_is_missing(tmp_path: Path) -> None:
    weights = open_weights(MODELS["shap-e"], Settings(data_dir=tmp_path, device="cpu"))

    assert weights.folder == tmp_path / "tiny" / "mesh"
    assert (weights.folder / "model_index.json").is_file()
    assert weights.arguments == {"use_safetensors": True}


def test_a_tiny_checkpoint_needs_no_licence(worker_settings: Settings) -> None:
    assert open_weights(MODELS["stable-video-diffusion-img2vid"], worker_settings).folder.name == "video"


def test_a_pipeline_is_of_the_class_that_its_index_names(worker_settings: Settings) -> None:
    names = {
        model.id: type(load_pipeline(model, worker_settings)).__name__
        for model in MODELS.values()
        if model.task in {"image", "video", "mesh"}
    }

    assert names == {
        "tiny-sd": "StableDiffusionPipeline",
        "stable-video-diffusion-img2vid": "StableVideoDiffusionPipeline",
        "wan2.1-t2v-1.3b": "WanPipeline",
        "shap-e": "ShapEPipeline",
        "shap-e-img2img": "ShapEImg2ImgPipeline",
    }


@pytest.mark.parametrize("model", ["tiny-sd", "shap-e"])
def test_a_pipeline_is_in_the_precision_that_was_set(worker_settings: Settings, model: str) -> None:
    pipeline = load_pipeline(MODELS[model], worker_settings.model_copy(update={"dtype": "bfloat16"}))

    assert {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)} == {
        torch.bfloat16
    }


# --- placement ---


def test_a_cpu_computes_in_single_precision_unless_told_otherwise() -> None:
    assert choose_placement("cpu", "auto") == choose_placement("cpu", "float32")
    assert choose_placement("cpu", "auto").dtype == torch.float32
    assert choose_placement("cpu", "bfloat16").dtype == torch.bfloat16


def test_auto_is_a_device_that_works() -> None:
    assert choose_placement("auto", "auto").device == torch.device(best_device())


def test_a_placement_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    choose_placement.cache_clear()
    with caplog.at_level("INFO", "atelier.engine"):
        choose_placement("cpu", "auto")
        choose_placement("cpu", "auto")

    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["models run on cpu in torch.float32"]


@pytest.mark.parametrize("device", ["bogus", "", "cuda:99", "meta", "cpu:zero"])
def test_a_device_that_cannot_be_used_is_one_clear_sentence(device: str) -> None:
    with pytest.raises(ModelUnavailable, match=f"^ATELIER_DEVICE={device} cannot be used") as refusal:
        choose_placement(device, "auto")
    assert torch.__version__ in refusal.value.message
    assert "\n" not in refusal.value.message


def test_models_are_valid_entries() -> None:
    Model.model_validate(entry())
