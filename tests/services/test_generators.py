"""The models on their tiny checkpoints: they make what the libraries would, and stop whenever that is wanted."""

import gc
import json
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from services.audio import service as audio
from services.audio.schema import SpeechRequest
from services.engine.events import Done, Output, Progress, Queued, Started
from services.engine.generation import Terms
from services.engine.outputs import Mesh, Sound
from services.engine.slots import Slot
from services.engine.stepper import Result, Stepper
from services.engine.weights import load_pipeline
from services.errors import Cancelled, GenerationFailed, InvalidRequest
from services.image import service as image
from services.image.edit import Edit
from services.image.schema import ImageJob, ImageRequest
from services.mesh import service as mesh
from services.mesh.schema import MeshJob, MeshRequest
from services.registry import Model, load_models
from services.schema import MAX_SEED, check_is_text, complete
from services.settings import Settings
from services.text import service as text
from services.text.pieces import Piece
from services.text.schema import ChatJob, ChatRequest, Message
from services.video import service as video
from services.video.schema import TextVideoJob, VideoJob, VideoRequest
from tests.services.conftest import MakeBench
from tests.services.stepping import Arrival, alone, run

MODELS = {model.id: model for model in load_models()}
PICTURE = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
MAKERS: dict[str, Callable[[Model, Settings], Stepper[Any]]] = {
    "tinyllama-1.1b-chat": text.make_stepper,
    "bark-small": audio.make_stepper,
    "tiny-sd": image.make_stepper,
    "stable-video-diffusion-img2vid": video.make_stepper,
    "wan2.1-t2v-1.3b": video.make_stepper,
    "shap-e": mesh.make_stepper,
    "shap-e-img2img": mesh.make_stepper,
}
VOICE = "v2/en_speaker_0"

by_model = pytest.mark.parametrize("model", MAKERS)


@dataclass(frozen=True)
class Made:
    """All that a model made of a request."""

    outputs: list[Any]
    progress: list[tuple[int, int]]
    made: Counter[str]
    result: Result

    @property
    def bytes(self) -> bytes:
        return b"".join(map(as_bytes, self.outputs))


def as_bytes(output: Any) -> bytes:
    match output:
        case Piece():
            return output.text.encode()
        case Sound(samples):
            return samples.tobytes()
        case Mesh(vertices, faces, colours):
            return vertices.tobytes() + faces.tobytes() + colours.tobytes()
        case _:
            return bytes(output.tobytes())


class Shelf:
    """The steppers by model, each loaded once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._made: dict[str, Stepper[Any]] = {}
        self._known: dict[str, Made] = {}

    def __getitem__(self, model: str) -> Stepper[Any]:
        if model not in self._made:
            self._made[model] = MAKERS[model](MODELS[model], self.settings)
        return self._made[model]

    def known(self, model: str) -> Made:
        """What `model` made of its small request when it was first asked."""
        if model not in self._known:
            self._known[model] = self.make(model)
        return self._known[model]

    def make(self, model: str, seed: int = 0, **fields: Any) -> Made:
        recorder = alone(self[model], job(model, **fields), seed)
        assert recorder.result is not None
        return Made(recorder.outputs, recorder.progress, recorder.made, recorder.result)


@pytest.fixture(scope="session")
def shelf(worker_settings: Settings) -> Shelf:
    return Shelf(worker_settings)


def job(model: str, **fields: Any) -> Any:
    """What the worker hands to `model`, small by default."""
    defaults = {"model": model, **MODELS[model].defaults_in("tiny")}
    match model:
        case "tinyllama-1.1b-chat":
            text = fields.pop("prompt", "Hello")
            chat = ChatRequest(messages=(Message(role="user", content=text),), **{"max_tokens": 12, **fields})
            return complete(ChatJob, chat, defaults)
        case "bark-small":
            return complete(SpeechRequest, SpeechRequest(**{"input": "Hi.", **fields}), defaults)
        case "tiny-sd":
            small = {"prompt": "a cat", "num_inference_steps": 3}
            return Edit(complete(ImageJob, ImageRequest(**{**small, **fields}), defaults))
        case "stable-video-diffusion-img2vid":
            small_film = {"num_frames": 3, "num_inference_steps": 2}
            return complete(VideoJob, VideoRequest(**{**small_film, **fields}), defaults), PICTURE
        case "wan2.1-t2v-1.3b":
            told: dict[str, Any] = {"prompt": "a cat", "num_frames": 5, "num_inference_steps": 2}
            return complete(TextVideoJob, VideoRequest(**{**told, **fields}), defaults)
        case "shap-e":
            lump = {"prompt": "a cat", "num_inference_steps": 3, "grid_size": 16}
            return complete(MeshJob, MeshRequest(**{**lump, **fields}), defaults), None
        case _:
            lump = {"image": "AAAA", "num_inference_steps": 3, "grid_size": 16}
            return complete(MeshJob, MeshRequest(**{**lump, **fields}), defaults), PICTURE


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what holds for all ---


@by_model
def test_the_same_seed_makes_the_same_and_another_another(shelf: Shelf, model: str) -> None:
    assert shelf.make(model, seed=0).bytes == shelf.known(model).bytes
    assert shelf.make(model, seed=MAX_SEED).bytes != shelf.known(model).bytes


@by_model
def test_progress_rises_to_its_end(shelf: Shelf, model: str) -> None:
    made = shelf.known(model)
    steps = [step for step, _ in made.progress]

    assert steps == sorted(steps)
    assert len({of for _, of in made.progress}) == 1
    assert steps[-1] <= made.progress[-1][1]
    if made.result.finish_reason != "stop" or model != "tinyllama-1.1b-chat":  # a chat may end early
        assert steps[-1] == made.progress[-1][1]


@by_model
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_model_stops_at_the_iteration_after_which_its_caller_is_gone(shelf: Shelf, model: str, where: str) -> None:
    before = shelf.known(model)
    num_iterations = len(before.progress)
    stop_after = {"first": 1, "middle": (num_iterations + 1) // 2, "last": num_iterations}[where]
    (recorder,), _ = run(shelf[model], [Arrival(job(model), stop_after=stop_after)])

    assert isinstance(recorder.error, Cancelled)
    assert len(recorder.progress) == stop_after
    again = shelf.make(model)
    assert (again.bytes, again.progress, again.result) == (before.bytes, before.progress, before.result)


@by_model
def test_a_finished_request_is_kept_by_nothing(shelf: Shelf, model: str) -> None:
    for stop_after in (None, 2):
        (recorder,), _ = run(shelf[model], [Arrival(job(model), stop_after=stop_after)])
        assert isinstance(recorder.error, Cancelled) == (stop_after is not None)
        gone = weakref.ref(recorder)
        del recorder
        gc.collect()
        assert gone() is None


@by_model
def test_a_model_draws_no_progress_bar_into_the_log(
    shelf: Shelf, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shelf.known(model)
    capfd.readouterr()
    with pytest.raises(Cancelled):
        alone(shelf[model], job(model), stop_after=2)

    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("model", sorted(MAKERS.keys() - {"bark-small"}))
def test_a_model_with_a_generator_of_its_own_leaves_the_global_one_alone(shelf: Shelf, model: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = shelf.make(model)

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert shelf.make(model).bytes == made.bytes


@by_model
@pytest.mark.anyio
async def test_a_model_runs_in_the_engine(shelf: Shelf, make_bench: MakeBench, model: str) -> None:
    bench = make_bench({"model": Slot(lambda: shelf[model], is_preloaded=False)})
    events = [event async for event in bench.engine.submit(job(model), None, 0, Terms(600))]
    made = shelf.known(model)

    assert events[:2] == [Queued(0), Started()]
    assert events[-1] == Done(made.made, made.result.finish_reason)
    assert b"".join(as_bytes(event.data) for event in events if isinstance(event, Output)) == made.bytes
    assert [(event.step, event.steps) for event in events if isinstance(event, Progress)] == made.progress
    assert bench.count("iterations_total") == len(made.progress)


@by_model
def test_numbers_that_are_none_are_a_failure_and_not_an_answer(shelf: Shelf, model: str, tmp_path: Path) -> None:
    weights = {
        "tinyllama-1.1b-chat": ["model.safetensors:lm_head.weight"],
        "bark-small": ["model.safetensors:codec_model.decoder.layers.0.conv.bias"],
        "tiny-sd": ["unet/diffusion_pytorch_model.safetensors:conv_in.bias"],
        "stable-video-diffusion-img2vid": ["unet/diffusion_pytorch_model.safetensors:conv_in.bias"],
        "wan2.1-t2v-1.3b": ["transformer/diffusion_pytorch_model.safetensors:patch_embedding.bias"],
        "shap-e": ["prior/diffusion_pytorch_model.safetensors:proj_in.bias"],
        "shap-e-img2img": ["prior/diffusion_pytorch_model.safetensors:proj_in.bias"],
    }[model]
    settings = damaged(shelf.settings, tmp_path, MODELS[model].revision_in("tiny").removeprefix("tiny:"), *weights)
    (recorder,), _ = run(MAKERS[model](MODELS[model], settings), [Arrival(job(model))])

    assert isinstance(recorder.error, GenerationFailed)
    assert "overflowed" in recorder.error.message
    assert recorder.outputs == []


def damaged(settings: Settings, folder: Path, recipe: str, *weights: str) -> Settings:
    """Copy a checkpoint and make some of its weights NaN."""
    shutil.copytree(settings.data_dir / "tiny" / recipe, folder / "tiny" / recipe)
    for weight in weights:
        file, name = weight.split(":")
        path = folder / "tiny" / recipe / file
        tensors = load_file(path)
        tensors[name].fill_(torch.nan)
        save_file(tensors, path, {"format": "pt"})
    return settings.model_copy(update={"data_dir": folder})


# --- audio ---


@pytest.fixture(scope="session")
def bark(data_dir: Path, worker_settings: Settings) -> Callable[[str, str | None, int], Any]:
    """The library's own speech."""
    from transformers import BarkModel, BarkProcessor

    processor: Any = BarkProcessor.from_pretrained(data_dir / "tiny" / "audio")
    network: Any = BarkModel.from_pretrained(data_dir / "tiny" / "audio")

    def speak(text: str, voice: str | None, seed: int) -> Any:
        torch.manual_seed(seed)
        return network.generate(**processor(text, voice_preset=voice))[0].numpy()

    return speak


@pytest.mark.parametrize("voice", [None, VOICE])
def test_a_sentence_is_the_librarys_own_sound(shelf: Shelf, bark: Any, voice: str | None) -> None:
    made = shelf.make("bark-small", seed=4, input="My dog is cute. He barks.", voice=voice)

    assert [sound.sample_rate for sound in made.outputs] == [24_000, 24_000]
    assert np.array_equal(made.outputs[0].samples, bark("My dog is cute.", voice, 4))
    assert made.made == {
        "input_characters": 25,
        "output_samples": sum(len(sound.samples) for sound in made.outputs),
        "audio_seconds": sum(len(sound.samples) / 24_000 for sound in made.outputs),
    }


def test_the_next_sentence_goes_on_from_what_was_said_without_its_end_mark(shelf: Shelf, data_dir: Path) -> None:
    from transformers import BarkModel, BarkProcessor
    from transformers.models.bark import generation_configuration_bark as configurations

    processor: Any = BarkProcessor.from_pretrained(data_dir / "tiny" / "audio")
    bark: Any = BarkModel.from_pretrained(data_dir / "tiny" / "audio")
    semantic = configurations.BarkSemanticGenerationConfig(**bark.generation_config.semantic_config)
    coarse = configurations.BarkCoarseGenerationConfig(**bark.generation_config.coarse_acoustics_config)
    common = {
        "semantic_generation_config": semantic,
        "coarse_generation_config": coarse,
        "codebook_size": bark.generation_config.codebook_size,
    }
    fine = configurations.BarkFineGenerationConfig(**bark.generation_config.fine_acoustics_config)

    for seed in range(100):
        torch.manual_seed(seed)
        tokens = bark.semantic.generate(**processor("Hi."), semantic_generation_config=semantic)
        if tokens[0, -1] == semantic.semantic_pad_token:
            break  # it ended by itself
    codes = bark.coarse_acoustics.generate(tokens.clone(), **common)
    codes = bark.fine_acoustics.generate(codes, **common, fine_generation_config=fine)
    voice = {"semantic_prompt": tokens[0, :-1], "coarse_prompt": codes[0, :2], "fine_prompt": codes[0]}

    second = bark.generate(**processor("You."), history_prompt=voice)[0].detach().numpy()

    assert np.array_equal(shelf.make("bark-small", seed=seed, input="Hi. You.").outputs[1].samples, second)


@pytest.mark.parametrize("voice", ["no one", "../../etc/passwd", "repo_or_path", " v2/en_speaker_0", "{canary}"])
def test_a_voice_that_is_none_is_refused_and_never_opened(shelf: Shelf, tmp_path: Path, voice: str) -> None:
    canary = tmp_path / "canary"  # the library would take it for a voice
    np.savez(
        canary.with_suffix(".npz"),
        semantic_prompt=np.zeros(9, int),
        coarse_prompt=np.zeros((2, 9), int),
        fine_prompt=np.zeros((8, 9), int),
    )

    with pytest.raises(InvalidRequest, match=VOICE) as refusal:
        alone(shelf["bark-small"], job("bark-small", voice=voice.format(canary=canary)), stop_after=0)
    assert refusal.value.param == "voice"


@pytest.mark.parametrize("text", ["\u4e16\u754c", "..."])
def test_any_text_is_said(shelf: Shelf, text: str) -> None:
    assert shelf.make("bark-small", input=text).made["output_samples"] > 0


def with_semantic(settings: Settings, folder: Path, **changes: Any) -> Settings:
    """Copy the Bark checkpoint and change how its first stage generates."""
    checkpoint = folder / "tiny" / "audio"
    shutil.copytree(settings.data_dir / "tiny" / "audio", checkpoint)
    file = checkpoint / "generation_config.json"
    config = json.loads(file.read_text())
    config["semantic_config"].update(changes)
    file.write_text(json.dumps(config))
    return settings.model_copy(update={"data_dir": folder})


def test_a_model_that_says_nothing_is_a_failure(shelf: Shelf, tmp_path: Path) -> None:
    silent = with_semantic(shelf.settings, tmp_path, min_new_tokens=0, begin_suppress_tokens=list(range(100)))

    with pytest.raises(GenerationFailed, match="said nothing"):
        alone(audio.make_stepper(MODELS["bark-small"], silent), job("bark-small"))


def test_the_shortest_sound_is_said_and_carries_its_voice_on(shelf: Shelf, tmp_path: Path) -> None:
    terse = with_semantic(shelf.settings, tmp_path, min_new_tokens=1, max_new_tokens=1)
    recorder = alone(audio.make_stepper(MODELS["bark-small"], terse), job("bark-small", input="Hi. You."))

    assert [len(sound.samples) for sound in recorder.outputs] == [320, 320]


# --- image ---


@pytest.mark.parametrize("fields", [{}, {"size": "72x64", "guidance_scale": 1}, {"negative_prompt": "a dog"}])
def test_a_picture_is_the_pipelines_own(shelf: Shelf, fields: dict[str, Any]) -> None:
    made = shelf.make("tiny-sd", seed=5, **fields)
    request = job("tiny-sd", **fields).job
    width, height = map(int, request.size.split("x"))
    pipeline = load_pipeline(MODELS["tiny-sd"], shelf.settings)
    (picture,) = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        width=width,
        height=height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=seeded(5),
    ).images

    assert made.outputs[0].shape == (height, width, 3)
    assert np.array_equal(made.outputs[0], np.asarray(picture))
    assert made.made == {"images": 1, "pixel_steps": width * height * request.num_inference_steps}


@pytest.mark.parametrize(
    "fields",
    [
        {"num_inference_steps": 1},
        {"guidance_scale": 0},
        {"guidance_scale": 50},
        {"size": "64x2048", "num_inference_steps": 1},
        {"prompt": "\U0001f408" * 2000},
    ],
    ids=str,
)  # fmt: skip
def test_a_picture_takes_the_extremes_of_its_parameters(shelf: Shelf, fields: dict[str, Any]) -> None:
    (picture,) = shelf.make("tiny-sd", **fields).outputs

    assert picture.dtype == np.uint8
    assert picture.std() > 1


# --- texts that nobody expected ---


def passes(text: str) -> bool:
    try:
        return bool(check_is_text(text))
    except ValueError:
        return False


ODD_TEXTS = st.text(min_size=1, max_size=60).filter(passes)
quickly = examples(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quickly
@given(text=ODD_TEXTS)
def test_any_text_that_passes_can_be_drawn_said_and_answered(shelf: Shelf, text: str) -> None:
    assert shelf.make("tiny-sd", prompt=text, num_inference_steps=1).outputs
    assert shelf.make("shap-e", prompt=text, num_inference_steps=2, grid_size=8).outputs
    assert shelf.make("tinyllama-1.1b-chat", prompt=text, max_tokens=2).made["prompt_tokens"] > 0
    with pytest.raises(Cancelled):
        alone(shelf["bark-small"], job("bark-small", input=text), stop_after=3)
