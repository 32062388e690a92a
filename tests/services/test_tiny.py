"""The tiny checkpoints: whole or absent, the same bytes everywhere, and each of them generates."""

import hashlib
import logging
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from safetensors.torch import load_file

from services.tiny import folder, marching_cubes
from services.tiny.__main__ import main
from services.tiny.build import RECIPES, TRAINED, ensure

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"  # diffusers' schedules, loaded and run
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("tiny")
    for recipe in RECIPES:
        ensure(recipe, built)
    return built


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def digests(checkpoints: Path) -> dict[str, str]:
    return {
        str(path.relative_to(checkpoints)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in checkpoints.rglob("*")
        if path.is_file()
    }


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- the files ---


def test_another_process_builds_the_same_bytes(root: Path, tmp_path: Path) -> None:
    built = run_python("-m", "services.tiny", "--root", str(tmp_path))

    assert (built.returncode, built.stderr) == (0, "")
    assert [line.split()[0] for line in built.stdout.splitlines()] == list(RECIPES)
    assert digests(tmp_path) == digests(root)


def test_all_checkpoints_together_stay_below_20_megabytes(root: Path) -> None:
    assert sum(path.stat().st_size for path in root.rglob("*")) < 20e6


def test_weights_are_safetensors(root: Path) -> None:
    suffixes = {path.suffix for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")}

    assert suffixes - {".md"} == {".safetensors", ".json", ".jinja", ".npy"}  # .md: the cards of what was trained


def test_every_user_can_read_the_files(root: Path) -> None:
    visible = [path for recipe in RECIPES for path in (root / recipe, *(root / recipe).rglob("*"))]

    assert {stat.S_IMODE(path.stat().st_mode) for path in visible if path.is_file()} == {0o644}
    assert {stat.S_IMODE(path.stat().st_mode) for path in visible if path.is_dir()} == {0o755}


def test_building_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()

    ensure("mesh", tmp_path)

    assert torch.equal(torch.get_rng_state(), before)


def test_finding_a_checkpoint_fresh_loads_no_model_library(root: Path) -> None:
    checked = run_python(
        "-c",
        "import sys; from pathlib import Path; from services.tiny.build import RECIPES, ensure\n"
        f"for recipe in RECIPES: ensure(recipe, Path({str(root)!r}))\n"
        "print({'torch', 'transformers', 'diffusers', 'numpy'} & set(sys.modules))",
    )

    assert checked.stdout == "set()\n", checked.stderr


# --- whole or absent ---


def write_one(target: Path) -> None:
    (target / "weights").write_text("whole")


def write_half(target: Path) -> None:
    (target / "weights").write_text("half")
    raise RuntimeError("half way")


def test_a_build_that_fails_half_way_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        folder.fill(tmp_path / "text", "1", write_half)

    assert names(tmp_path) == {".text.lock"}


def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    killed = run_python(
        "-c",
        "import os; from pathlib import Path; from services.tiny import folder\n"
        "def write(target):\n"
        "    (target / 'weights').write_text('half')\n"
        "    os._exit(9)\n"
        f"folder.fill(Path({str(tmp_path)!r}) / 'text', '1', write)",
    )

    assert killed.returncode == 9
    assert not (tmp_path / "text").exists()
    assert (folder.fill(tmp_path / "text", "1", write_one) / "weights").read_text() == "whole"
    assert names(tmp_path) == {".text.lock", "text"}


def test_a_stale_folder_stays_until_its_successor_is_whole(tmp_path: Path) -> None:
    folder.fill(tmp_path / "text", "1", write_one)

    with pytest.raises(RuntimeError):
        folder.fill(tmp_path / "text", "2", write_half)

    assert (tmp_path / "text" / "weights").read_text() == "whole"
    assert not folder.is_fresh(tmp_path / "text", "2")


def test_a_stale_checkpoint_is_built_anew(root: Path, tmp_path: Path) -> None:
    ensure("mesh_image", tmp_path)
    (tmp_path / "mesh_image" / folder.STAMP).write_text("of another version")
    (tmp_path / "mesh_image" / "left over").touch()

    ensure("mesh_image", tmp_path)

    assert digests(tmp_path / "mesh_image") == digests(root / "mesh_image")


def test_a_fresh_checkpoint_is_not_touched(root: Path) -> None:
    before = {path: path.stat() for path in (root / "text", *(root / "text").iterdir())}

    assert ensure("text", root) == root / "text"

    assert {path: path.stat() for path in before} == before


def test_of_two_builds_at_once_one_writes_and_both_end_well(tmp_path: Path) -> None:
    barrier = Barrier(2)
    written = []

    def write(target: Path) -> None:
        written.append(target)
        write_one(target)

    def build() -> Path:
        barrier.wait(timeout=30)
        return folder.fill(tmp_path / "text", "1", write)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(build), pool.submit(build)
        assert first.result() == second.result() == tmp_path / "text"

    assert len(written) == 1


# --- trained weights ---


def test_trained_weights_take_the_place_of_random_ones(tmp_path: Path) -> None:
    weights = tmp_path / "trained" / "mesh" / "prior" / "weights"
    weights.parent.mkdir(parents=True)
    for words in ("learned", "learned more"):
        weights.write_text(words)
        checkpoint = ensure("mesh", tmp_path / "tiny", tmp_path / "trained")
        assert (checkpoint / "prior" / "weights").read_text() == words
        assert names(checkpoint) == {"prior", folder.STAMP}


def test_what_was_trained_is_small_has_half_precision_and_a_card() -> None:
    files = [path for path in TRAINED.rglob("*") if path.is_file()]
    weights = [tensor for path in files if path.suffix == ".safetensors" for tensor in load_file(path).values()]

    assert sum(path.stat().st_size for path in files) < 40e6
    kinds = {torch.float16, torch.bool, torch.int64}  # Bark's masks, and where Shap-E's triangles are
    assert {tensor.dtype for tensor in weights} == kinds
    assert {path.suffix for path in files} <= {".safetensors", ".npy", ".json", ".jinja", ".txt", ".md"}
    for place in TRAINED.iterdir():
        card = (place / "README.md").read_text(encoding="utf-8")
        assert re.findall("^## (.+)$", card, re.MULTILINE) == ["Data", "Recipe", "Measured", "Limits", "Licence"]


def test_what_is_not_trained_is_random(root: Path, tmp_path: Path) -> None:
    (tmp_path / "trained" / "mesh").mkdir(parents=True)

    ensure("mesh_image", tmp_path, tmp_path / "trained")

    assert digests(tmp_path / "mesh_image") == digests(root / "mesh_image")


# --- the command ---


def test_the_command_says_in_one_line_that_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    assert main(["--root", str(tmp_path / "file" / "tiny"), "text"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cannot build text in ")


def test_the_command_says_in_one_line_that_the_disk_is_full(tmp_path: Path) -> None:
    full = run_python(
        "-c",
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "from services.tiny.__main__ import main\n"
        f"sys.exit(main(['--root', {str(tmp_path)!r}, 'text']))",
    )

    assert full.returncode == 1
    assert len(full.stderr.splitlines()) == 1
    assert "File too large" in full.stderr
    assert names(tmp_path) == {".text.lock"}


def test_the_command_knows_its_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["sculpture"])

    assert refusal.value.code == 2
    assert "mesh_image" in capsys.readouterr().err


# --- they load and generate ---


def load_pipeline(checkpoint: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(checkpoint, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(width: int = 64, height: int = 64) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def test_text_chats_in_printable_ascii(root: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "text", local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(root / "text", local_files_only=True)
    chats = [[{"role": "user", "content": content}] for content in ("hi", "Wie heißt du? 世界 🐈")]
    prompts: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens = model.generate(**prompts, do_sample=True, max_new_tokens=100, max_length=None)

    answers = tokenizer.decode(tokens[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
    assert all(answer.replace("\n", "").isprintable() and answer.isascii() for answer in answers)
    assert min(map(len, answers)) > 1
    assert answers[0] != answers[1]


def test_text_has_a_llama_context_and_gives_back_what_it_reads(root: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "text", local_files_only=True)
    text = "héllo 世界 🐈\n\ttab"

    assert tokenizer.padding_side == "left"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert AutoConfig.from_pretrained(root / "text").max_position_embeddings == tokenizer.model_max_length == 2048


@pytest.fixture(scope="session")
def speak(root: Path) -> Any:
    from transformers import BarkModel, BarkProcessor

    logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)  # Bark's own use of generate is outdated
    processor = BarkProcessor.from_pretrained(root / "audio", local_files_only=True)
    model = BarkModel.from_pretrained(root / "audio", local_files_only=True)

    def speak(text: str, voice: str | None) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model.generate(**processor(text, voice_preset=voice))[0].numpy()

    return speak


def test_audio_is_heard_and_does_not_clip(speak: Any) -> None:
    samples = speak("Hello, my dog is cute.", "v2/en_speaker_0")

    assert 9_600 <= len(samples) <= 28_800
    assert samples.std() > 0.03
    assert abs(samples.mean()) < 0.01
    assert abs(samples).max() < 1


def test_audio_depends_on_text_and_voice(speak: Any) -> None:
    texts_and_voices = [
        ("Hello, my dog is cute.", None),
        ("Grüß Gott, schöne Welt!", None),
        ("Grüß Gott, schöne Welt!", "v2/de_speaker_1"),
    ]

    assert len({speak(text, voice).tobytes() for text, voice in texts_and_voices}) == len(texts_and_voices)


def test_image_is_64_pixels_and_depends_on_prompt_and_seed(root: Path) -> None:
    pipeline = load_pipeline(root / "image")

    def draw(prompt: str, seed: int) -> Any:
        return np.asarray(pipeline(prompt, num_inference_steps=6, generator=seeded(seed)).images[0]).astype(int)

    cat = draw("a cat", 0)

    assert cat.shape == (64, 64, 3)
    assert cat.std(axis=(0, 1)).min() > 10
    assert abs(draw("a dog in space", 0) - cat).mean() > 1
    assert abs(draw("a cat", 1) - cat).mean() > 1


def test_video_moves_and_depends_on_its_image(root: Path) -> None:
    pipeline = load_pipeline(root / "video")

    def film(image: Image.Image) -> Any:
        options = {"height": 64, "width": 64, "num_frames": 4, "num_inference_steps": 2, "output_type": "np"}
        return pipeline(image, generator=seeded(0), **options).frames[0]

    frames = film(gradient())

    assert frames.shape == (4, 64, 64, 3)
    assert abs(np.diff(frames, axis=0)).mean() > 0.01
    assert abs(film(gradient().rotate(90)) - frames).mean() > 0.01


def test_a_film_from_a_text_moves_and_depends_on_prompt_and_seed(root: Path) -> None:
    pipeline = load_pipeline(root / "text_video")

    def film(prompt: str, seed: int) -> Any:
        options = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 4, "output_type": "np"}
        return pipeline(prompt, generator=seeded(seed), **options).frames[0]

    frames = film("a cat", 0)

    assert frames.shape == (5, 64, 64, 3)
    assert abs(np.diff(frames, axis=0)).mean() > 0.05
    assert abs(film("a dog", 0) - frames).mean() > 0.05
    assert abs(film("a cat", 1) - frames).mean() > 0.05


def test_a_prompt_to_film_is_read_letter_by_letter(root: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "text_video" / "tokenizer", local_files_only=True)

    assert tokenizer.decode(tokenizer("Grüß Gott, schöne Welt!").input_ids[:-1]) == "Grüß Gott, schöne Welt!"
    assert tokenizer.model_max_length == 512


def sculpt(pipeline: Any, prompt: Any, seed: int, grid_size: int) -> Any:
    latents = pipeline(prompt, num_inference_steps=4, generator=seeded(seed), output_type="latent").images
    mesh = pipeline.shap_e_renderer.decode_to_mesh(latents[:1], "cpu", grid_size=grid_size)
    colours = torch.stack([mesh.vertex_channels[channel] for channel in "RGB"], dim=-1)
    return trimesh.Trimesh(mesh.verts.numpy(), mesh.faces.numpy(), vertex_colors=colours.numpy(), process=False)


@pytest.mark.parametrize(("recipe", "prompt"), [("mesh", "a shark"), ("mesh_image", gradient())])
def test_mesh_is_a_closed_coloured_solid(root: Path, recipe: str, prompt: Any) -> None:
    mesh = sculpt(load_pipeline(root / recipe), prompt, seed=0, grid_size=24)

    assert len(mesh.faces) > 1000
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0.5
    assert mesh.visual.vertex_colors[:, :3].std(axis=0).min() > 5


def test_mesh_depends_on_prompt_and_seed(root: Path) -> None:
    pipeline = load_pipeline(root / "mesh")

    volumes = {sculpt(pipeline, prompt, seed, 16).volume for prompt in ("a shark", "a chair") for seed in (0, 1)}

    assert len(volumes) == 4


def test_no_latent_makes_an_empty_mesh(root: Path) -> None:
    renderer = load_pipeline(root / "mesh").shap_e_renderer

    for seed in range(30):
        latent = torch.randn(1, 64, 16, generator=seeded(seed)) * 10 ** (seed % 5 - 2)
        assert len(renderer.decode_to_mesh(latent, "cpu", grid_size=8).faces) > 100


# --- marching cubes ---


@pytest.fixture(scope="session")
def decoder() -> Any:
    from diffusers.pipelines.shap_e.renderer import MeshDecoder

    cases, masks = marching_cubes.tables()
    decoder = MeshDecoder()
    decoder.load_state_dict({"cases": cases, "masks": masks})
    return decoder


@settings(max_examples=60, deadline=None)  # no test is timed
@given(inner=hnp.arrays(np.int8, (5, 5, 5), elements=st.sampled_from([-2, -1, 0, 1, 2])))
def test_any_field_gives_a_closed_surface_turned_outwards(decoder: Any, inner: Any) -> None:
    inner[2, 2, 2] = 1  # never empty, which the decoder cannot express
    field = torch.full((7, 7, 7), -1.0)
    field[1:-1, 1:-1, 1:-1] = torch.from_numpy(inner)

    decoded = decoder(field, torch.zeros(3), torch.full((3,), 6.0))

    mesh = trimesh.Trimesh(decoded.verts.numpy(), decoded.faces.numpy(), process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0
