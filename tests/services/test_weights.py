"""Weights: the tiny recipes, licences, and where and how precisely a model is put."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from prometheus_client import CollectorRegistry
from transformers.utils import logging as transformers_logging

from services.engine import default_type
from services.engine.adapters import open_adapter
from services.engine.assembly import build_engine, licence_refusal, load
from services.engine.generation import Terms
from services.engine.placement import best_device, choose_placement
from services.engine.stepper import Stepper
from services.engine.weights import load_pipeline, open_weights, weigh
from services.errors import ModelUnavailable
from services.registry import Adapter, Model, load_models, models_of
from services.settings import Settings
from services.video.service import make_stepper as make_film
from tests.services.conftest import LONG
from tests.services.hubs import entry

MODELS = {model.id: model for model in load_models()}


# --- licences ---


def test_a_licence_without_commercial_use_has_to_be_accepted_by_name() -> None:
    model = MODELS["stable-video-diffusion-img2vid"]

    refusal = licence_refusal(model, Settings(profile="hub", accept_licences=frozenset({"another"})))

    assert refusal is not None
    assert f"ATELIER_ACCEPT_LICENCES={model.id}" in refusal
    assert f"{model.source.licence} ({model.source.licence_url})" in refusal
    assert licence_refusal(model, Settings(profile="hub", accept_licences=frozenset({model.id}))) is None


def test_a_licence_is_asked_for_before_anything_is_loaded(tmp_path: Path) -> None:
    settings = Settings(profile="hub", data_dir=tmp_path)
    engine = build_engine("video", never, settings, CollectorRegistry())

    with pytest.raises(ModelUnavailable, match="ATELIER_ACCEPT_LICENCES"):
        engine.submit(None, None, None, Terms(LONG))


def never(model: Model, settings: Settings) -> Stepper[Any]:
    raise AssertionError("nothing is to be loaded")


def test_an_adapters_licence_has_to_be_accepted_too() -> None:
    terms = {"commercial_use": False, "licence": "NC", "licence_url": "https://example.org/nc"}
    own = Model.model_validate({**entry(), "adapters": [{"name": "ink", "folder": {"path": "ink", **terms}}]})
    refusal = licence_refusal(own, Settings(profile="hub")) or ""

    assert "'tiny:ink' comes under the NC (https://example.org/nc)" in refusal
    assert "ATELIER_ACCEPT_LICENCES=tiny:ink" in refusal
    assert licence_refusal(own, Settings(profile="hub", accept_licences=frozenset({"tiny:ink"}))) is None


def test_a_licence_that_is_accepted_lets_the_load_go_on(worker_settings: Settings, tmp_path: Path) -> None:
    model, file = MODELS["stable-video-diffusion-img2vid"], tmp_path / "models.toml"
    folder = worker_settings.data_dir / "tiny" / "video"
    file.write_text(
        f"[[models]]\nid = '{model.id}'\ntask = 'video'\ninput_modalities = ['image']\n"
        f"[models.folder]\npath = '{folder}'\ncommercial_use = false\n",
        encoding="utf-8",
    )
    settings = worker_settings.model_copy(update={"models_file": file})
    accepting = settings.model_copy(update={"accept_licences": frozenset({model.id})})
    barred, free = (build_engine("video", make_film, each, CollectorRegistry()) for each in (settings, accepting))

    with pytest.raises(ModelUnavailable, match="ATELIER_ACCEPT_LICENCES"):
        barred.load(model.id)
    free.start()
    try:
        while free.look(model.id).state == "loading":
            threading.Event().wait(0.001)
        assert free.look(model.id).state == "ready"
    finally:
        free.close()


def test_the_log_names_source_and_terms_of_every_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "atelier.engine"):
        build_engine("video", never, Settings(profile="hub", data_dir=tmp_path), CollectorRegistry())
        build_engine("mesh", never, Settings(data_dir=tmp_path), CollectorRegistry())
    said = {record.getMessage().partition(": ")[0]: record.getMessage() for record in caplog.records}

    served = [*models_of("video", load_models(profile="hub")), *models_of("mesh", load_models(profile="tiny"))]
    assert said.keys() == {f"model {model.id}" for model in served}
    barred, free = said["model stable-video-diffusion-img2vid"], said["model wan2.1-t2v-1.3b"]
    source = MODELS["stable-video-diffusion-img2vid"].hub
    assert source is not None
    for named in (source.repository, source.revision, source.licence, source.licence_url, "no commercial use"):
        assert named in barred
    assert "ATELIER_ACCEPT_LICENCES=stable-video-diffusion-img2vid" in barred
    assert free.endswith("commercial use allowed")
    assert "built here by the recipe 'mesh'" in said["model shap-e"]


def test_the_log_names_source_and_terms_of_adapters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        """
[[models]]
id = "own"
task = "image"
folder = { path = "sd" }
adapters = [
    { name = "ink", folder = { path = "ink", licence = "CC", licence_url = "https://example.org/cc" } },
    { name = "noise", tiny = { recipe = "image_lora" } },
]
""",
        encoding="utf-8",
    )
    with caplog.at_level("INFO", "atelier.engine"):
        build_engine("image", never, Settings(data_dir=tmp_path, models_file=file), CollectorRegistry())
    said = [record.getMessage() for record in caplog.records]

    assert f"model own:ink: {tmp_path / 'ink'}, under CC (https://example.org/cc), commercial use allowed" in said
    assert "model own:noise: built here by the recipe 'image_lora'" in said


def test_a_free_licence_needs_no_word() -> None:
    assert licence_refusal(MODELS["shap-e"], Settings(profile="hub")) is None


def test_a_tiny_checkpoint_needs_no_word() -> None:
    assert licence_refusal(MODELS["stable-video-diffusion-img2vid"], Settings(profile="tiny")) is None


def test_licences_are_accepted_by_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_ACCEPT_LICENCES", "one, two,,")

    assert Settings().accept_licences == {"one", "two"}


# --- adapters ---


def test_an_adapter_is_a_folder_built_here_or_the_operators(tmp_path: Path) -> None:
    adapter = Adapter.model_validate({"name": "ink", "tiny": {"recipe": "text"}, "folder": {"path": tmp_path}})

    assert open_adapter(adapter, MODELS["tiny-sd"], Settings(data_dir=tmp_path)) == tmp_path / "tiny" / "text"
    assert open_adapter(adapter, MODELS["tiny-sd"], Settings(data_dir=tmp_path, profile="hub")) == tmp_path


def test_an_adapter_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    adapter = Adapter.model_validate({"name": "ink", "folder": {"path": tmp_path / "none"}})

    with pytest.raises(ModelUnavailable, match=r"^adapter 'ink' of model 'tiny-sd': there is no folder .*none$"):
        open_adapter(adapter, MODELS["tiny-sd"], Settings())


# --- tiny ---


def test_a_tiny_checkpoint_is_built_where_it_is_missing(tmp_path: Path) -> None:
    weights = open_weights(MODELS["shap-e"], Settings(data_dir=tmp_path, device="cpu"))

    assert weights.folder == tmp_path / "tiny" / "mesh"
    assert (weights.folder / "model_index.json").is_file()
    assert weights.arguments == {"use_safetensors": True}


def test_an_operators_folder_is_loaded_as_it_is(worker_settings: Settings, tmp_path: Path) -> None:
    folder = worker_settings.data_dir / "tiny" / "image"
    file = tmp_path / "models.toml"
    file.write_text(
        f"[[models]]\nid = 'own'\ntask = 'image'\n[models.folder]\npath = '{folder}'\ncommercial_use = false\n",
        encoding="utf-8",
    )
    settings = worker_settings.model_copy(update={"models_file": file, "profile": "hub"})
    model = load_models(file)[-1]

    assert type(load_pipeline(model, settings)).__name__ == "StableDiffusionPipeline"
    assert "ATELIER_ACCEPT_LICENCES=own" in (licence_refusal(model, worker_settings) or "")
    assert set(build_engine("image", never, settings, CollectorRegistry()).defaults("own")) == {"model"}


def test_a_tiny_checkpoint_needs_no_licence(worker_settings: Settings) -> None:
    assert open_weights(MODELS["stable-video-diffusion-img2vid"], worker_settings).folder.name == "video"


def test_a_pipeline_is_of_the_class_that_its_index_names(worker_settings: Settings) -> None:
    names = {
        model.id: type(load_pipeline(model, worker_settings)).__name__
        for model in MODELS.values()
        if model.task in {"image", "video", "mesh"}
    }

    assert names == {
        "shapes": "StableDiffusionPipeline",
        "tiny-sd": "StableDiffusionPipeline",
        "moves": "StableVideoDiffusionPipeline",
        "stable-video-diffusion-img2vid": "StableVideoDiffusionPipeline",
        "films": "WanPipeline",
        "wan2.1-t2v-1.3b": "WanPipeline",
        "solids": "ShapEPipeline",
        "solids-img2img": "ShapEImg2ImgPipeline",
        "shap-e": "ShapEPipeline",
        "shap-e-img2img": "ShapEImg2ImgPipeline",
    }


@pytest.mark.parametrize("model", ["tiny-sd", "shap-e"])
def test_a_pipeline_is_in_the_precision_that_was_set(worker_settings: Settings, model: str) -> None:
    pipeline = load_pipeline(MODELS[model], worker_settings.model_copy(update={"dtype": "bfloat16"}))

    assert {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("model", ["tiny-sd", "wan2.1-t2v-1.3b", "shap-e"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_weighed(worker_settings: Settings, model: str, dtype: str) -> None:
    pipeline = load_pipeline(MODELS[model], worker_settings.model_copy(update={"dtype": dtype}))
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    expected = sum(tensor.nbytes for part in parts for tensor in (*part.parameters(), *part.buffers()))

    weighed = weigh(pipeline)
    assert expected <= weighed < expected + 60_000  # of the scheduler's tables
    another = load_pipeline(MODELS["shap-e-img2img"], worker_settings)
    assert weigh(pipeline) == weighed < weigh([pipeline, another, pipeline])


def test_what_shares_its_memory_is_weighed_once() -> None:
    whole = torch.zeros(100)

    assert weigh([whole, whole[:10], whole.reshape(10, 10)]) == whole.nbytes


def test_a_load_draws_no_bars(worker_settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    for library in (diffusers_logging, transformers_logging):
        library.enable_progress_bar()
    load(make_film, MODELS["stable-video-diffusion-img2vid"], worker_settings)

    assert "%|" not in capfd.readouterr().err


def test_a_load_changes_no_type_under_a_forward(worker_settings: Settings) -> None:
    settings = worker_settings.model_copy(update={"dtype": "bfloat16"})
    changes: list[torch.dtype] = []

    def make(model: Model, settings: Settings) -> Any:
        change: Any = torch.set_default_dtype

        def note(dtype: torch.dtype) -> None:
            changes.append(dtype)
            change(dtype)

        torch.set_default_dtype = note
        return load_pipeline(model, settings)

    with ThreadPoolExecutor(1) as thread:
        with default_type.kept():
            loaded = thread.submit(load, make, MODELS["tiny-sd"], settings)
            while torch.bfloat16 not in changes:
                assert not loaded.done()
            assert torch.get_default_dtype() == torch.float32
        while not loaded.done():
            with default_type.kept():
                assert torch.get_default_dtype() == torch.float32
        loaded.result()
    assert torch.set_default_dtype.__module__ == "torch"


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
