"""What cannot be loaded says why in one sentence, takes nothing else down, and loads when it has been repaired."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from services.audio.service import make_stepper as make_audio
from services.engine.assembly import Make, build_engine, load
from services.engine.generation import Terms
from services.errors import ModelUnavailable
from services.image.service import make_stepper as make_image
from services.mesh.service import make_stepper as make_mesh
from services.registry import Model
from services.settings import Settings
from services.text.service import make_stepper as make_text
from services.video.service import make_stepper as make_video
from tests.services.conftest import LONG
from tests.services.hubs import REPOSITORY

Damage = Callable[[Path], object]

MAKES: Mapping[str, Make] = {
    "text": make_text,
    "audio": make_audio,
    "image": make_image,
    "video": make_video,
    "mesh": make_mesh,
}
WEIGHTS = "model.safetensors"
OWN_CODE = "it wants code of its own to be run, which is never done"


def cut(name: str, share: float = 0.6) -> Damage:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


def overwrite(name: str, start: int = 8) -> Damage:
    def damage(folder: Path) -> None:
        damaged = bytearray((folder / name).read_bytes())
        damaged[start : start + 32] = b"\xff" * 32
        (folder / name).write_bytes(damaged)

    return damage


def drop(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def edit(name: str, **fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**found, **fields}), encoding="utf-8")

    return damage


def pickled(folder: Path) -> None:
    """Have the weights as a pickle alone."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def pickled_code(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"weight": os.system}, folder / "pytorch_model.bin")


def cut_pickle(folder: Path) -> None:
    pickled(folder)
    cut("pytorch_model.bin")(folder)


def split(folder: Path) -> None:
    """Have the weights in two files, of which one is missing."""
    tensors = load_file(folder / WEIGHTS)
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, folder / first, metadata={"format": "pt"})
    places = {name: first if number % 2 == 0 else second for number, name in enumerate(names)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (folder / WEIGHTS).unlink()


def without_a_tensor(name: str) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        del tensors[min(tensors)]
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return damage


def with_own_pipeline(folder: Path) -> None:
    edit("model_index.json", _class_name=["own", "Own"])(folder)
    (folder / "own.py").write_text("raise SystemExit('it was run')\n", encoding="utf-8")


def with_own_part(folder: Path) -> None:
    edit("model_index.json", unet=["own", "Own"])(folder)
    (folder / "unet" / "own.py").write_text("raise SystemExit('it was run')\n", encoding="utf-8")


CHATS: list[tuple[Damage, str]] = [
    (cut(WEIGHTS), "model.safetensors has "),
    (cut(WEIGHTS, 0), "model.safetensors breaks off after 0 bytes"),
    (overwrite(WEIGHTS), "model.safetensors has a damaged header"),
    (drop(WEIGHTS), "model.safetensors is missing"),
    (pickled, "model.safetensors is missing: there are only pickles, which its entry does not allow"),
    (split, f"{WEIGHTS}.index.json names model-00002-of-00002.safetensors, which is missing"),
    (
        without_a_tensor(WEIGHTS),
        "the weights of its LlamaForCausalLM lack lm_head.weight, which its config.json asks for",
    ),
    (shutil.rmtree, "its folder 'own' does not exist"),
    (drop("config.json"), "its folder has neither config.json nor model_index.json"),
    (write("config.json", "{"), "config.json is no JSON"),
    (write("config.json", "[]"), "config.json is no JSON object"),
    (edit("config.json", model_type="bark"), "it is of the kind 'bark', and a chat model is wanted here"),
    (edit("config.json", intermediate_size=96), "the weights of its LlamaForCausalLM do not fit its config.json: "),
    (edit("config.json", num_hidden_layers=5), "the weights of its LlamaForCausalLM lack model.layers.2."),
    (edit("config.json", num_attention_heads=7), "its config.json contradicts itself: The hidden size (64) is not a "),
    (edit("config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}), OWN_CODE),
    (edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own"), OWN_CODE),
    (drop("tokenizer.json"), "tokenizer.json is missing"),
    (write("tokenizer.json", "{"), "tokenizer.json is no JSON"),
    (write("tokenizer.json", "{}"), "tokenizer.json is no tokenizer"),
    (write("generation_config.json", "{"), "generation_config.json is no JSON"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("damage", "sentence"), CHATS)
async def test_a_broken_model_says_why_and_is_back_when_it_is_repaired(
    worker_settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Damage, sentence: str
) -> None:
    whole, folder, file = worker_settings.data_dir / "tiny" / "text", tmp_path / "own", tmp_path / "models.toml"
    shutil.copytree(whole, folder)
    damage(folder)
    entry = '[[models]]\nid = "own"\ntask = "text"\nfolder = { path = "own", strategy = "on_demand" }\n'
    file.write_text(entry, encoding="utf-8")
    engine = build_engine(
        "text", make_text, worker_settings.model_copy(update={"models_file": file}), CollectorRegistry()
    )
    engine.start()

    async def state(model: str) -> str:
        while engine.look(model).state == "loading":
            await asyncio.to_thread(threading.Event().wait, 0.001)
        return engine.look(model).state

    try:
        assert await state("tinyllama-1.1b-chat") == "ready"
        waiting = engine.submit(None, "own", 0, Terms(LONG))
        with pytest.raises(ModelUnavailable) as refusal:
            [event async for event in waiting]
        said = refusal.value.message
        assert said.startswith(f"model 'own' cannot be loaded: {sentence}")
        assert "\n" not in said
        assert str(tmp_path) not in said
        assert (engine.look("own").state, engine.look("own").failure) == ("failed", said)
        assert engine.look("tinyllama-1.1b-chat").state == "ready"
        engine.check_is_ready()
        told = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.getMessage() for record in told] == [f"model own is not loaded: {said}"]
        assert told[0].exc_info is None

        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        engine.load("own")
        while engine.look("own").state == "cold":
            await asyncio.to_thread(threading.Event().wait, 0.001)
        assert await state("own") == "ready"
        assert engine.look("own").failure is None
    finally:
        engine.close()


UNET = "unet/diffusion_pytorch_model.safetensors"
LOADS: list[tuple[str, str, Damage, str]] = [
    ("image", "image", cut(UNET), f"{UNET} has "),
    ("image", "image", drop(UNET), f"{UNET} is missing"),
    (
        "image",
        "image",
        without_a_tensor(UNET),
        "the weights of its unet lack conv_in.bias, which its config.json asks for",
    ),
    ("image", "image", without_a_tensor("text_encoder/model.safetensors"), "the weights of its CLIPTextModel lack "),
    ("image", "image", edit("unet/config.json", cross_attention_dim=48), "its weights do not fit its config.json: "),
    ("image", "image", drop("model_index.json"), "its folder has neither config.json nor model_index.json"),
    ("image", "image", write("model_index.json", "{"), "model_index.json is no JSON"),
    ("image", "image", lambda folder: shutil.rmtree(folder / "scheduler"), "its part scheduler is missing"),
    ("image", "image", lambda folder: shutil.rmtree(folder / "unet"), "its part unet is missing"),
    ("image", "image", drop("tokenizer/tokenizer.json"), "tokenizer/tokenizer.json is missing"),
    ("image", "image", drop("tokenizer/tokenizer_config.json"), "tokenizer/tokenizer_config.json is missing"),
    (
        "image",
        "image",
        edit("model_index.json", _class_name="Own"),
        "it is of the kind 'Own', and Stable Diffusion is ",
    ),
    (
        "image",
        "image",
        edit("model_index.json", unet=["diffusers", "Own"]),
        "its model_index.json names an unknown class, Own",
    ),
    ("image", "image", with_own_pipeline, OWN_CODE),
    ("image", "image", with_own_part, OWN_CODE),
    ("image", "text", lambda folder: None, "it is of the kind 'llama', and Stable Diffusion is wanted here"),
    (
        "text",
        "image",
        lambda folder: None,
        "it is of the kind 'StableDiffusionPipeline', and a chat model is wanted here",
    ),
    (
        "video",
        "image",
        lambda folder: None,
        "it is of the kind 'StableDiffusionPipeline', and Stable Video Diffusion is ",
    ),
    (
        "video",
        "video",
        lambda folder: shutil.rmtree(folder / "feature_extractor"),
        "its part feature_extractor is missing",
    ),
    (
        "mesh",
        "video",
        lambda folder: None,
        "it is of the kind 'StableVideoDiffusionPipeline', and Shap-E for texts is wanted here",
    ),
    ("mesh", "mesh", edit("prior/config.json", num_layers=4), "the weights of its prior lack transformer_blocks.2."),
    ("audio", "text", lambda folder: None, "it is of the kind 'llama', and Bark is wanted here"),
    ("audio", "audio", cut(WEIGHTS), "model.safetensors has "),
    ("audio", "audio", drop("generation_config.json"), "its generation_config.json lacks sample_rate"),
]


def own(task: str, folder: Path, **fields: Any) -> Model:
    made_for = {"video": ["image"], "mesh": ["text"]}.get(task, [])
    source = {"path": folder, **fields}
    return Model.model_validate({"id": "own", "task": task, "input_modalities": made_for, "folder": source})


def refusal_of(model: Model, settings: Settings) -> str:
    with pytest.raises(ModelUnavailable) as refusal:
        load(MAKES[model.task], model, settings)
    assert refusal.value.retry_after is None
    assert "\n" not in refusal.value.message
    return refusal.value.message.removeprefix("model 'own' cannot be loaded: ")


@pytest.mark.parametrize(("task", "recipe", "damage", "sentence"), LOADS)
def test_what_is_wrong_with_a_checkpoint(
    worker_settings: Settings, tmp_path: Path, task: str, recipe: str, damage: Damage, sentence: str
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(worker_settings.data_dir / "tiny" / recipe, folder)
    damage(folder)

    assert refusal_of(own(task, folder), worker_settings).startswith(sentence)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (pickled_code, "its pickle holds more than weights, and is not read"),
        (cut_pickle, "pytorch_model.bin is damaged"),
    ],
)
def test_a_pickle_that_is_allowed_holds_weights_and_nothing_else(
    worker_settings: Settings, tmp_path: Path, damage: Damage, sentence: str
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(worker_settings.data_dir / "tiny" / "audio", folder)
    damage(folder)

    assert refusal_of(own("audio", folder, safetensors=False), worker_settings) == sentence


def test_what_is_not_understood_is_for_the_log(worker_settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(worker_settings.data_dir / "tiny" / "image", folder)
    edit("scheduler/scheduler_config.json", num_train_timesteps="many")(folder)

    with pytest.raises(TypeError):
        load(make_image, own("image", folder), worker_settings)


# Loads the chat model of a folder as another user, or where no file may become large: what a machine may refuse.
PROGRAM = """
import os, resource, sys
from pathlib import Path
from services.engine.assembly import load
from services.errors import ModelUnavailable
from services.registry import Model, load_models
from services.settings import Settings
from services.text.service import make_stepper

what, folder = sys.argv[1], Path(sys.argv[2])
settings = Settings(data_dir=folder)
model = load_models(profile="hub")[0]
if what == "small":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
else:
    model = Model.model_validate({"id": model.id, "task": "text", "folder": {"path": folder}})
    import services.text.engine  # what is installed may be of another user's as well
    if os.geteuid() == 0:
        os.seteuid(65534)
try:
    load(make_stepper, model, settings)
except ModelUnavailable as error:
    print(error.message)
"""


def said_by_a_process(what: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=3 * LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removeprefix("model 'tinyllama-1.1b-chat' cannot be loaded: ").rstrip("\n")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (".", "its folder 'own' may not be read by the worker's user"),
        ("config.json", "config.json may not be read by the worker's user"),
        (WEIGHTS, "model.safetensors may not be read by the worker's user"),
    ],
)
def test_what_another_user_keeps_to_himself(data_dir: Path, name: str, sentence: str) -> None:
    with TemporaryDirectory() as shared:  # pytest's own lie deeper, and are nobody else's
        Path(shared).chmod(0o755)
        folder = Path(shared) / "own"
        shutil.copytree(data_dir / "tiny" / "text", folder)
        (folder / name).chmod(0)
        assert said_by_a_process("other", folder) == sentence
        (folder / name).chmod(0o700)


def test_a_disk_that_is_full_while_a_checkpoint_is_built(tmp_path: Path) -> None:
    assert said_by_a_process("small", tmp_path) == "there is no room left on the disk, or in a quota"
    assert not (tmp_path / "tiny" / "text").exists()
