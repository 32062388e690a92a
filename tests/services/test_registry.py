"""The registry: every model in it can be served as it stands there."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from services.audio.schema import SpeechRequest
from services.image.schema import ImageJob, ImageRequest
from services.mesh.schema import MeshJob, MeshRequest
from services.registry import (
    MODELS_FILE,
    WORKERS,
    Model,
    Profile,
    Refusal,
    Task,
    Template,
    first_for,
    load_models,
    local_models_of,
    models_of,
    read_models,
)
from services.schema import GenerationRequest, complete
from services.settings import Settings
from services.text.schema import ChatJob, ChatRequest, Message
from services.tiny.audio import VOICES
from services.tiny.build import RECIPES
from services.video.schema import TextVideoJob, VideoJob, VideoRequest

MODELS = load_models(profile="hub")
TASKS: tuple[Task, ...] = get_args(Task)
PROFILES: tuple[Profile, ...] = get_args(Profile)
LEAST: Mapping[Task, tuple[GenerationRequest, type[GenerationRequest]]] = {
    "text": (ChatRequest(messages=(Message(role="user", content="Hi"),)), ChatJob),
    "audio": (SpeechRequest(input="Hi"), SpeechRequest),
    "image": (ImageRequest(prompt="a cat"), ImageJob),
    "video": (VideoRequest(), VideoJob),
    "mesh": (MeshRequest(prompt="a cat"), MeshJob),
}

LEAST_OF: Mapping[str, tuple[GenerationRequest, type[GenerationRequest]]] = {  # where a task has two kinds
    "wan2.1-t2v-1.3b": (VideoRequest(prompt="a cat"), TextVideoJob),
}

by_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
by_task = pytest.mark.parametrize("task", TASKS)


def write(folder: Path, text: str) -> Path:
    file = folder / "models.toml"
    file.write_text(text, encoding="utf-8")
    return file


@by_model
@pytest.mark.parametrize("profile", PROFILES)
def test_the_least_request_is_whole_with_the_models_defaults(model: Model, profile: Profile) -> None:
    request, job_type = LEAST_OF.get(model.id) or LEAST[model.task]
    defaults = {"model": model.id, **model.defaults_in(profile)}
    job = complete(job_type, request, defaults).model_dump()

    assert {name: job[name] for name in defaults} == defaults
    assert job_type.model_validate(job).model_dump() == job


@by_model
def test_a_models_recipe_exists(model: Model) -> None:
    assert model.tiny is not None
    assert model.tiny.recipe in RECIPES


@by_model
def test_a_tiny_checkpoint_overrides_only_what_the_model_has(model: Model) -> None:
    assert model.tiny is not None
    assert set(model.tiny.defaults) <= set(model.defaults)
    assert model.defaults_in("hub") == model.defaults


@by_model
def test_a_models_files_are_named_by_patterns_that_fetch_no_more_than_its_format(model: Model) -> None:
    assert model.hub is not None
    patterns = " ".join(model.hub.files)

    assert "*" not in model.hub.files
    assert (".bin" in patterns) is not model.hub.safetensors  # pickles only where there is nothing else
    assert model.hub.licence_url.startswith("https://")


@by_model
def test_tiny_models_are_all_in_memory_from_the_start(model: Model) -> None:
    assert model.is_preloaded_in("tiny")
    assert model.strategy_in("hub") == model.source.strategy


@by_task
def test_a_task_has_a_model_and_a_worker(task: Task) -> None:
    served = models_of(task, MODELS)

    assert served
    assert served[0] == next(model for model in MODELS if model.task == task)
    assert {model.task for model in served} == {task}
    assert task in WORKERS


def test_video_weights_need_their_licence_accepted() -> None:
    assert [model.id for model in MODELS if not model.source.commercial_use] == ["stable-video-diffusion-img2vid"]


@pytest.mark.parametrize("task", ["video", "mesh"])
def test_there_is_a_model_for_texts_and_one_for_pictures(task: Task) -> None:
    assert first_for("text", models_of(task, MODELS)) != first_for("image", models_of(task, MODELS))
    assert {model.input_modalities for model in models_of(task, MODELS)} == {("text",), ("image",)}


LARGEST_QUEUE = 900


def test_a_queue_may_be_as_long_as_bentoml_lets_wait() -> None:
    assert Settings(queue_size=LARGEST_QUEUE).queue_size == LARGEST_QUEUE
    with pytest.raises(ValidationError):
        Settings(queue_size=LARGEST_QUEUE + 1)


def test_workers_have_ports_of_their_own() -> None:
    assert {task: worker.port for task, worker in WORKERS.items()} == {
        "text": 3001, "audio": 3002, "image": 3003, "video": 3004, "mesh": 3005,
    }  # fmt: skip


@by_task
def test_a_workers_target_is_a_service_that_answers_before_bentoml_does(task: Task) -> None:
    module, name = WORKERS[task].target.split(":")
    service: Any = getattr(importlib.import_module(module), name)
    traffic = service.config["traffic"]

    assert service.name == task
    assert service.config["http"]["port"] == WORKERS[task].port
    assert service.config["workers"] == 1  # the engine owns the model
    assert traffic["timeout"] > service.inner.longest  # else BentoML's 504, without our envelope, comes first
    assert traffic["max_concurrency"] > LARGEST_QUEUE + 100  # else its 429, without Retry-After, does
    assert service.config["resources"]


# --- a registry that is wrong ---

ENTRIES = ["[[models]]" + entry for entry in MODELS_FILE.read_text(encoding="utf-8").split("[[models]]")[1:]]
TEXT = "".join(entry for entry in ENTRIES if 'profile = "tiny"' not in entry)


def test_an_id_may_not_appear_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="appears twice"):
        read_models(write(tmp_path, TEXT.replace('id = "shap-e-img2img"', 'id = "shap-e"')))


@pytest.mark.parametrize(
    ("right", "wrong", "field"),
    [
        ('task = "text"', 'task = "txt"', "task"),
        ("fe8a4ea1ffedaf415f4da2f062534de366a451e6", "main", "hub.revision"),
        ("size_gb = 2.2", "size_gb = 0", "hub.size_gb"),
        ('strategy = "preload"', 'strategy = "external"', "hub.strategy"),
        ('recipe = "text"', 'recipe = "text"\nstrategy = "often"', "tiny.strategy"),
        ('task = "text"', 'task = "text"\ninput_modalities = ["image"]', "input_modalities: models for text take text"),
        ('task = "text"', 'task = "text"\nexamples = [" "]', "examples.0: String should have at least 1"),
        ('task = "text"', 'task = "text"\nvoices = ["a"]', "voices: models for text have none"),
        ('task = "audio"', 'task = "audio"\nschedulers = ["ddim"]', "schedulers: models for audio have none"),
        ('task = "image"', 'task = "image"\nschedulers = ["heun"]', "schedulers.0: Input should be 'ddim'"),
        ('recipe = "image"\ndefaults = {', 'recipe = "image"\ndefaults = { scheduler = "x",', "defaults.scheduler: "),
        ('task = "audio"', 'task = "audio"\ndefaults = { voice = "x" }', "defaults.voice: there is no voice 'x'"),
        ('input_modalities = ["text"]', "", "made for texts or for pictures"),
        ('input_modalities = ["text"]', 'input_modalities = ["text", "image"]', "made for texts or for pictures"),
        ('recipe = "text"', 'receipt = "text"', "tiny.rec"),
        ("[models.tiny]", "[models.small]", "'tinyllama-1.1b-chat': small"),
        ("[models.tiny]", '[models.template]\nsuffix = "!"\n[models.tiny]', "no use for: suffix"),
        ("[models.tiny]", '[models.template]\nstyle = "!"\n[models.tiny]', "template.style"),
    ],
)
def test_an_entry_that_does_not_fit_names_its_field(tmp_path: Path, right: str, wrong: str, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        read_models(write(tmp_path, TEXT.replace(right, wrong, 1)))


def test_a_template_is_read(tmp_path: Path) -> None:
    text = TEXT.replace("[models.tiny]", '[models.template]\nsystem = "Be brief."\n[models.tiny]', 1)
    assert read_models(write(tmp_path, text))[0].template == Template(system="Be brief.")


def test_a_file_that_is_no_toml_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at line"):
        read_models(write(tmp_path, "[[models]"))


# --- the operator's own ---

OWN = """
[[models]]
id = "ours/sd"
task = "image"
defaults = { size = "64x64" }
[models.folder]
path = "weights/sd"
"""

ELSEWHERE = OWN[: OWN.index("[models.folder]")] + '[models.external]\nurl = "http://host:3003"\n'


def test_an_entry_of_the_operators_comes_after_ours(tmp_path: Path) -> None:
    found = load_models(write(tmp_path, OWN))
    own = found[-1]

    assert found[:-1] == load_models()
    assert (own.id, own.source.path) == ("ours/sd", tmp_path / "weights" / "sd")  # type: ignore[union-attr]
    assert own.source.licence is None
    for profile in PROFILES:  # no tiny checkpoint stands for it
        assert own.defaults_in(profile) == {"size": "64x64"}
        assert own.revision_in(profile) == "folder:sd"
        assert own.is_preloaded_in(profile)


ADAPTED = """
[[models]]
id = "ours/sd"
task = "image"
folder = { path = "sd" }
[[models.adapters]]
name = "ink"
folder = { path = "adapters/ink" }
"""


def test_nothing_is_fetched_for_a_model_that_another_worker_serves(tmp_path: Path) -> None:
    adapter = (
        """hub = { repository = "a/ink", revision = "%s", files = ["*"], licence = "MIT",
        licence_url = "https://example.org", commercial_use = true, size_gb = 0.1 }""".replace("\n", "")
        % ("0" * 40)
    )
    here = ADAPTED.replace('folder = { path = "adapters/ink" }', adapter)
    elsewhere = here.replace('folder = { path = "sd" }', 'external = { url = "http://far:3003" }')

    assert [set(load_models(write(tmp_path, text))[-1].hub_files) for text in (here, elsewhere)] == [
        {"ours/sd:ink"},
        set(),
    ]


def test_an_adapters_path_begins_where_the_file_is(tmp_path: Path) -> None:
    own = load_models(write(tmp_path, ADAPTED))[-1]

    assert own.source.path == tmp_path / "sd"  # type: ignore[union-attr]
    assert [adapter.source.path for adapter in own.adapters] == [tmp_path / "adapters" / "ink"]  # type: ignore[union-attr]


def test_an_entry_may_be_for_one_profile_alone(tmp_path: Path) -> None:
    text = OWN.replace('task = "image"', 'task = "image"\nprofile = "hub"')

    assert load_models(write(tmp_path, text), "hub")[-1].id == "ours/sd"
    assert load_models(write(tmp_path, text), "tiny") == load_models(profile="tiny")


def test_what_was_trained_is_the_default_where_there_are_no_real_weights() -> None:
    models = load_models(profile="tiny")
    chat, letters, shapes, moves, solids = (models_of(task, models)[0] for task in TASKS)
    films = next(model for model in models_of("video", models) if "text" in model.input_modalities)

    assert chat.adapter_names == ("pirate",)
    assert shapes.adapter_names == ("night",)
    assert films.id == "films"
    assert [each.id for each in (chat, letters, shapes, moves, solids)] == [
        "chat",
        "letters",
        "shapes",
        "moves",
        "solids",
    ]
    for trained in (chat, letters, shapes, moves, films, solids):
        assert trained.is_preloaded_in("tiny")
        assert trained not in MODELS


def test_an_entry_of_the_operators_takes_the_place_of_ours(tmp_path: Path) -> None:
    found = load_models(write(tmp_path, OWN.replace("ours/sd", "shapes")))

    assert [model.id for model in found] == [model.id for model in load_models()]
    assert models_of("image", found)[0].revision_in("tiny") == "folder:sd"


def test_a_model_of_another_worker_is_none_that_ours_loads(tmp_path: Path) -> None:
    found = load_models(write(tmp_path, ELSEWHERE.replace("ours/sd", "shapes")))

    assert models_of("image", found)[0].is_external
    assert [model.id for model in local_models_of("image", found)] == ["tiny-sd"]
    for profile in PROFILES:
        assert models_of("image", found)[0].strategy_in(profile) == "external"
        assert not models_of("image", found)[0].is_preloaded_in(profile)


def test_an_operators_strategy_counts_for_the_tiny_checkpoint_too(tmp_path: Path) -> None:
    first = TEXT[: TEXT.index('[[models]]\nid = "bark-small"')].replace('"preload"', '"swap"')
    [own] = read_models(write(tmp_path, first))
    [other] = read_models(write(tmp_path, first.replace('recipe = "text"', 'recipe = "text"\nstrategy = "on_demand"')))

    assert (own.strategy_in("tiny"), own.strategy_in("hub")) == ("swap", "swap")
    assert (other.strategy_in("tiny"), other.strategy_in("hub")) == ("on_demand", "swap")


def test_voices_may_have_names_of_the_operators(tmp_path: Path) -> None:
    text = TEXT.replace('task = "audio"', 'task = "audio"\nvoices = { alloy = "v2/en_speaker_6" }')
    bark = next(model for model in read_models(write(tmp_path, text)) if model.task == "audio")

    assert bark.voices_in("hub") == {"alloy": "v2/en_speaker_6"}
    assert set(bark.voices_in("tiny") or ()) == set(VOICES)
    refused = bark.refusal_of("hub", {"voice": "v2/en_speaker_6"})
    said = "there is no voice 'v2/en_speaker_6' for model 'bark-small'; choose one of: alloy"
    assert refused == Refusal("voice", said, "invalid_value")


def test_the_hubs_weights_may_be_an_entry_without_a_tiny_checkpoint(tmp_path: Path) -> None:
    first = TEXT[: TEXT.index('[[models]]\nid = "bark-small"')].replace('[models.tiny]\nrecipe = "text"\n', "")
    [own] = read_models(write(tmp_path, first))

    assert own.tiny is None
    assert own.revision_in("tiny") == own.revision_in("hub") == MODELS[0].revision_in("hub")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.replace("ours/sd", "bark-small"), "'bark-small' is a model for audio and remains one"),
        (OWN.replace("path", "paths"), "'ours/sd': folder.path: Field required"),
        (OWN.replace("ours/sd", "ours sd"), "'ours sd': id: String should match"),
        (OWN.replace('id = "ours/sd"', ""), "entry 1: id: Field required"),
        (OWN.replace("[models.folder]", "[models.tiny]").replace("path", "recipe"), "hub, folder or external"),
        (OWN + 'strategy = "external"', "folder.strategy: Input should be 'preload', 'on_demand' or 'swap'"),
        (
            OWN.replace('task = "image"', 'task = "image"\npinned = true') + 'strategy = "swap"',
            "'ours/sd': pinned: with",
        ),
        (OWN + '[models.external]\nurl = "http://host:3003"', "one place: hub, folder or external"),
        (ELSEWHERE.replace("http:", "tcp:"), "external.url: String should match"),
        (ELSEWHERE + '[models.tiny]\nrecipe = "image"', "'ours/sd': tiny: is for the worker that serves it to know"),
        (ELSEWHERE + '[models.template]\nsuffix = "!"', "'ours/sd': template: is for the worker that serves it"),
        (OWN + OWN, "a model id appears twice"),
        (ADAPTED + ADAPTED.partition("folder")[2].partition("\n")[2], "'ours/sd': adapters: a name appears twice"),
        (ADAPTED.replace('folder = { path = "adapters/ink" }', ""), "adapters.0: an adapter has its weights from one"),
        (ADAPTED.replace('"image"', '"audio"'), "adapters: models of this task take none; those for image and text do"),
        (
            OWN.replace("[models.f", 'quantisation = "int4"\n[models.f'),
            "quantisation: models of this task are kept in int8",
        ),
        (
            OWN.replace('"image"', '"audio"').replace("[models.f", 'quantisation = "int8"\n[models.f'),
            "quantisation: models of this task are kept in floating point alone",
        ),
        ('models = "all"', "models: Input should be a valid tuple"),
        ('title = "mine"', "models: Field required"),
        ("\0", "Invalid statement"),
    ],
)
def test_what_does_not_fit_in_the_operators_file_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)

    with pytest.raises(ValueError, match=said) as error:
        load_models(file)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "said"), [("absent.toml", "no such file or directory"), ("", "is a directory")])
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: {said}$"):
        load_models(tmp_path / name)


def test_what_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"models\.toml: 'utf-8' codec"):
        load_models(tmp_path / "models.toml")


def test_an_empty_setting_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_MODELS_FILE", "")

    assert Settings().models_file is None
