"""Shap-E by the step on its tiny checkpoints: what it makes is the library's, whoever else is served beside."""

import contextlib
import gc
import shutil
import weakref
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import Phase as Stage
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from services.engine.checkpoints import Unfit
from services.engine.events import Done, Output, Progress, Queued, Started
from services.engine.generation import Generation, Terms
from services.engine.outputs import Mesh
from services.engine.slots import Slot
from services.engine.stepper import MAX_BATCH_SIZE
from services.engine.weights import load_pipeline
from services.errors import Cancelled, GenerationFailed, InvalidRequest, ModelLoading
from services.mesh.engine import MeshStepper, Phase
from services.mesh.schema import MeshJob, MeshRequest
from services.registry import load_models
from services.schema import MAX_SEED, check_is_text, complete
from services.settings import Settings
from tests.services.conftest import MakeBench
from tests.services.stepping import Arrival, Recorder, run

MODELS = {model.id: model for model in load_models(profile="hub") if model.task == "mesh"}
PICTURES = (
    Image.linear_gradient("L").resize((96, 64)).convert("RGB"),
    Image.radial_gradient("L").resize((40, 70)),
    Image.linear_gradient("L").rotate(90).convert("RGBA"),
)
PROMPTS = ("a cat", "a red chair", "\u4e16\u754c " * 200)
LONG = 600.0

by_model = pytest.mark.parametrize("model", MODELS)
quickly = partial(
    examples,
    deadline=None,
    phases=[Stage.explicit, Stage.reuse, Stage.generate],  # to make a failure smaller takes many minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Finely(MeshStepper):
    """Cuts small grids into pieces too: one of 16 cells an edge, the default here, into eight."""

    piece = 512


class Boom(Exception):
    """Something that nobody foresaw."""


Log = list[tuple[Phase, list[int]]]  # of the forwards: what they were, and for whom


def drive(
    stepper: MeshStepper, *asks: Arrival, most: int = 8, repeated: frozenset[int] = frozenset()
) -> tuple[list[Recorder], Log]:
    """Serve `asks` as the engine would, see `run`."""
    made, forwards = run(stepper, asks, most, repeated)
    return made, [(forward.phase, list(forward.members)) for forward in forwards]


def mesh_of(made: Recorder) -> Mesh:
    (mesh,) = made.outputs
    assert isinstance(mesh, Mesh)
    return mesh


def bytes_of(made: Recorder) -> bytes:
    mesh = mesh_of(made)
    return mesh.vertices.tobytes() + mesh.faces.tobytes() + mesh.colours.tobytes()


class Shelf:
    """The steppers and the library's own pipelines, each loaded once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stepper = cache(lambda model: Finely(MODELS[model], settings))
        self.pipeline = cache(lambda model: load_pipeline(MODELS[model], settings))
        self.known = cache(self.make)

    def make(self, model: str, seed: int = 0, **fields: Any) -> Recorder:
        ((made,), _) = drive(self.stepper(model), Arrival(request(model, **fields), seed))
        if made.error:
            raise made.error
        return made


@pytest.fixture(scope="module")
def shelf(worker_settings: Settings) -> Shelf:
    return Shelf(worker_settings)


def request(model: str, source: int = 0, **fields: Any) -> tuple[MeshJob, Image.Image | None]:
    """What the worker hands to `model`, small by default."""
    is_text = model == "shap-e"
    own = {"prompt": PROMPTS[source]} if is_text else {"image": "AAAA"}
    small = {"num_inference_steps": 3, "grid_size": 16}
    defaults = {"model": model, **MODELS[model].defaults_in("tiny")}
    job = complete(MeshJob, MeshRequest(**{**own, **small, **fields}), defaults)
    return job, None if is_text else PICTURES[source]


def library_latents(pipeline: Any, ask: Arrival) -> torch.Tensor:
    """What the library's one call makes of `ask`."""
    job, picture = ask.request
    latents: torch.Tensor = pipeline(
        picture or job.prompt,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator().manual_seed(ask.seed),
        output_type="latent",
    ).images
    return latents


def library_mesh(pipeline: Any, latents: torch.Tensor, grid_size: int) -> Mesh:
    made = pipeline.shap_e_renderer.decode_to_mesh(latents, "cpu", grid_size)
    colours = torch.stack([made.vertex_channels[name] for name in "RGB"], dim=1).clamp(0, 1)
    return Mesh(made.verts.detach().numpy(), made.faces.numpy(), colours.detach().numpy())


def check_is_close(mesh: Mesh, other: Mesh, tolerance: float) -> None:
    assert np.array_equal(mesh.faces, other.faces)
    assert np.allclose(mesh.vertices, other.vertices, rtol=0, atol=tolerance)
    assert np.allclose(mesh.colours, other.colours, rtol=0, atol=tolerance)


def check_looks_the_same(mesh: Mesh, other: Mesh, grid_size: int) -> None:
    """Compare what was made of latents that rounding made differ.

    A vertex moves far along its edge where the distance hardly changes, but stays within a twentieth of it. Rounding
    may turn a distance of nearly nothing from + to -, which puts a vertex on another edge, at the same place. The tiny
    checkpoints' colours are fine-grained noise there, so that they can be compared only at vertices that stayed.
    """
    tolerance = 0.05 * 2 / (grid_size - 1)  # the cube has edges of 2
    if np.array_equal(mesh.faces, other.faces):
        moved = np.abs(mesh.vertices - other.vertices).max(axis=1)
        stays = moved <= 1e-3
        assert moved.max() <= tolerance
        assert stays.mean() >= 0.95
        assert np.allclose(mesh.colours[stays], other.colours[stays], rtol=0, atol=2 / 255)
        return
    for one, two in ((mesh, other), (other, mesh)):
        gaps = torch.cdist(
            torch.from_numpy(one.vertices),
            torch.from_numpy(two.vertices),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        assert gaps.min(dim=1).values.max() <= tolerance


def check_is_the_librarys(pipeline: Any, ask: Arrival, made: Recorder) -> None:
    own = library_latents(pipeline, ask)
    grid_size = ask.request[0].grid_size

    assert (made.state.latents - own).abs().max() <= 1e-3 * own.std()
    check_is_close(mesh_of(made), library_mesh(pipeline, made.state.latents, grid_size), 1e-5)
    check_looks_the_same(mesh_of(made), library_mesh(pipeline, own, grid_size), grid_size)
    assert made.made == {"meshes": 1, "faces": len(mesh_of(made).faces)}


# --- equal to the library ---


@by_model
@pytest.mark.parametrize("fineness", [MeshStepper, Finely])
def test_a_mesh_is_the_pipelines_own(shelf: Shelf, model: str, fineness: type[MeshStepper]) -> None:
    ask = Arrival(request(model, grid_size=33), seed=7)
    ((made,), _) = drive(fineness(MODELS[model], shelf.settings), ask)
    latents = library_latents(shelf.pipeline(model), ask)

    assert torch.equal(made.state.latents, latents)
    check_is_close(mesh_of(made), library_mesh(shelf.pipeline(model), latents, 33), 1e-5)


@st.composite
def mixes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw who asks for what and when, and what happens to the forwards."""
    fields = st.fixed_dictionaries(
        {
            "source": st.integers(0, 2),
            "num_inference_steps": st.integers(2, 8),
            "guidance_scale": st.sampled_from([0.0, 1.0, 1.5, 3.0, 15.0]),
            "grid_size": st.integers(8, 24),
        }
    )
    one = st.tuples(fields, st.integers(0, MAX_SEED), st.integers(0, 12))
    return {
        "asks": draw(st.lists(one, min_size=1, max_size=4)),
        "most": draw(st.integers(1, 4)),
        "repeated": draw(st.frozensets(st.integers(0, 30), max_size=10)),
    }


@by_model
@quickly(max_examples=8)
@given(mix=mixes())
def test_whoever_is_served_beside_a_request_it_gets_the_librarys_own(
    shelf: Shelf, model: str, mix: dict[str, Any]
) -> None:
    asks = [Arrival(request(model, **fields), seed, tick) for fields, seed, tick in mix["asks"]]
    made, _ = drive(shelf.stepper(model), *asks, most=mix["most"], repeated=mix["repeated"])

    for ask, one in zip(asks, made, strict=True):
        check_is_the_librarys(shelf.pipeline(model), ask, one)


@by_model
def test_requests_share_encoding_and_denoising_whatever_they_ask_for(shelf: Shelf, model: str) -> None:
    asks = [
        Arrival(request(model, 0, num_inference_steps=4)),
        Arrival(request(model, 1, num_inference_steps=2, guidance_scale=1)),
        Arrival(request(model, 2, num_inference_steps=3, guidance_scale=9)),
    ]
    _, log = drive(shelf.stepper(model), *asks)
    shared = [batch for phase, batch in log if phase in (Phase.ENCODE, Phase.DENOISE)]

    assert shared[:4] == [[0, 1, 2]] * 4
    assert sum(map(len, shared)) == 3 + (7 + 3 + 5)  # Heun calls twice a step but for the last
    assert all(len(batch) == 1 for phase, batch in log if phase not in (Phase.ENCODE, Phase.DENOISE))
    assert len(shared) == 1 + 7


# --- nobody waits for another's mesh, nor suffers from another's end ---


@by_model
def test_the_decoding_of_one_takes_turns_with_the_denoising_of_another(shelf: Shelf, model: str) -> None:
    first = Arrival(request(model, num_inference_steps=2))
    _, log = drive(shelf.stepper(model), first, Arrival(request(model, num_inference_steps=8), tick=4))

    assert [phase for phase, batch in log if 0 in batch] == [
        Phase.ENCODE,
        *[Phase.DENOISE] * 3,
        Phase.PROJECT,
        *[Phase.GRID] * 8,
        Phase.SURFACE,
        *[Phase.COLOUR] * 2,
    ]
    decoding = [turn for turn, (_, batch) in enumerate(log) if 0 in batch][4:]
    assert np.diff(decoding).tolist() == [3, *[2] * 10]  # encoding and denoising are two kinds, both new
    assert [phase for phase, _ in log[5:8]] == [Phase.ENCODE, Phase.DENOISE, Phase.GRID]


def test_two_decodings_take_turns_and_keep_apart(shelf: Shelf) -> None:
    asks = [Arrival(request("shap-e", source, num_inference_steps=2), source) for source in (0, 1)]
    made, log = drive(shelf.stepper("shap-e"), *asks)

    assert [batch for phase, batch in log if phase is Phase.GRID] == [[0], [1]] * 8
    for ask, one in zip(asks, made, strict=True):
        check_is_the_librarys(shelf.pipeline("shap-e"), ask, one)


@by_model
@quickly(max_examples=5)
@given(stop_after=st.integers(1, 12), error=st.sampled_from([Cancelled, Boom]), tick=st.integers(0, 12))
def test_the_end_of_one_changes_nothing_for_its_mates(
    shelf: Shelf, model: str, stop_after: int, error: type[Exception], tick: int
) -> None:
    mates = [
        Arrival(request(model, 1), 1),
        Arrival(request(model, 2, guidance_scale=1, num_inference_steps=5), 2, tick),
    ]
    gone = Arrival(request(model, 0), 0, tick, stop_after, error)
    made, log = drive(shelf.stepper(model), *mates, gone)

    assert isinstance(made[2].error, error)
    assert made[2].outputs == []
    assert sum(2 in batch for _, batch in log) == stop_after
    for ask, one in zip(mates, made, strict=False):
        check_is_the_librarys(shelf.pipeline(model), ask, one)


@by_model
def test_a_model_stops_at_the_iteration_after_which_its_caller_is_gone(shelf: Shelf, model: str) -> None:
    before = shelf.make(model)
    phases = set()
    for stop_after in range(1, len(before.progress) + 1):
        ask = Arrival(request(model), stop_after=stop_after)
        ((left,), log) = drive(shelf.stepper(model), ask)
        phases.add(log[-1][0])

        assert isinstance(left.error, Cancelled)
        assert len(log) == len(left.progress) == stop_after
        assert left.outputs == []

    assert phases == set(Phase)
    assert bytes_of(shelf.make(model)) == bytes_of(before)


async def leave_at(generation: Generation, stop_at: int) -> None:
    seen = 0
    async for event in generation:
        seen += isinstance(event, Progress)
        if seen == stop_at:
            generation.cancel()


@by_model
@pytest.mark.anyio
async def test_the_engine_runs_one_iteration_at_most_after_a_cancel(
    shelf: Shelf, make_bench: MakeBench, model: str
) -> None:
    bench = make_bench({"model": Slot(lambda: shelf.stepper(model), is_preloaded=False)})
    last = len(shelf.known(model).progress)
    for stop_at in range(1, last):
        generation = bench.engine.submit(request(model), None, 0, Terms(LONG))
        before = bench.count("iterations_after_leave_total") or 0
        with contextlib.suppress(ModelLoading):  # which those who left are told; the last may be through by then
            await leave_at(generation, stop_at)
        assert (bench.count("iterations_after_leave_total") or 0) - before <= 1

    endings = bench.endings()
    assert endings["failed"] == 0
    assert (endings["left"] or 0) > 0


@by_model
@pytest.mark.anyio
async def test_a_model_runs_in_the_engine_with_others(shelf: Shelf, make_bench: MakeBench, model: str) -> None:
    bench = make_bench({"model": Slot(lambda: shelf.stepper(model), is_preloaded=False)})
    asks = [Arrival(request(model, source, num_inference_steps=2 + source), source) for source in range(3)]
    generations = [bench.engine.submit(ask.request, None, ask.seed, Terms(LONG)) for ask in asks]

    histories = [[event async for event in generation] for generation in generations]

    for ask, events in zip(asks, histories, strict=True):  # the engine is done: a model is one thread's at a time
        alone, _ = drive(shelf.stepper(model), ask)
        (mesh,) = (event.data for event in events if isinstance(event, Output))
        progress = [(event.step, event.steps) for event in events if isinstance(event, Progress)]

        assert isinstance(events[0], Queued)
        assert Started() in events
        assert events[-1] == Done({"meshes": 1, "faces": len(mesh.faces)}, "stop")
        assert progress == alone[0].progress
        check_looks_the_same(mesh, mesh_of(alone[0]), ask.request[0].grid_size)
    assert (bench.count("batch_size_sum") or 0) > (bench.count("batch_size_count") or 0)


# --- what holds for every model ---


@by_model
def test_the_same_seed_makes_the_same_and_another_another(shelf: Shelf, model: str) -> None:
    assert bytes_of(shelf.make(model)) == bytes_of(shelf.known(model))
    assert bytes_of(shelf.make(model, MAX_SEED)) != bytes_of(shelf.known(model))


@by_model
def test_progress_rises_to_its_end_and_is_whole_with_the_last_colour_only(shelf: Shelf, model: str) -> None:
    steps = 1 + 5 + 1 + 8 + 1 + 1

    colours = [(steps - 1, steps), (steps, steps)]  # how many pieces they take is not known before
    assert shelf.known(model).progress == [(step, steps) for step in range(1, steps)] + colours


@by_model
def test_a_finished_request_is_kept_by_nothing(shelf: Shelf, model: str) -> None:
    for stop_after in (None, 2, 6, 7, 8, 16, 17):
        (served, _) = drive(shelf.stepper(model), Arrival(request(model), stop_after=stop_after))
        gone = weakref.ref(served[0].state)
        del served
        gc.collect()
        assert gone() is None


@by_model
def test_a_model_draws_no_progress_bar_into_the_log(
    shelf: Shelf, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shelf.known(model)
    capfd.readouterr()
    shelf.make(model)

    assert capfd.readouterr().err == ""


@by_model
def test_the_global_generator_is_left_alone(shelf: Shelf, model: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = shelf.make(model)

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert bytes_of(shelf.make(model)) == bytes_of(made)


@pytest.mark.parametrize(
    ("name", "wrong", "wanted"), [("shap-e", "image", "pictures"), ("shap-e-img2img", "text", "texts")]
)
def test_a_checkpoint_that_is_not_what_its_entry_says_is_named(
    worker_settings: Settings, name: str, wrong: str, wanted: str
) -> None:
    model = next(model for model in load_models() if model.id == name).model_copy(update={"input_modalities": (wrong,)})

    with pytest.raises(Unfit, match=f"it is of the kind '.*', and Shap-E for {wanted} is wanted here"):
        MeshStepper(model, worker_settings)


def test_a_text_is_not_for_the_picture_model_nor_the_reverse(shelf: Shelf) -> None:
    for model, other, wanted in (("shap-e", "shap-e-img2img", "prompt"), ("shap-e-img2img", "shap-e", "image")):
        with pytest.raises(InvalidRequest, match=f"'{model}' needs '{wanted}'") as refusal:
            shelf.stepper(model).admit(request(other), 0, Recorder())
        assert refusal.value.param == wanted


@by_model
@pytest.mark.parametrize(
    "fields",
    [
        {"num_inference_steps": 2},
        {"grid_size": 8},
        {"grid_size": 33},
        {"guidance_scale": 0},
        {"guidance_scale": 50},
    ],
    ids=str,
)  # fmt: skip
def test_a_mesh_takes_the_extremes_of_its_parameters(shelf: Shelf, model: str, fields: dict[str, Any]) -> None:
    made = shelf.make(model, **fields)

    assert made.result is not None
    assert len(mesh_of(made).faces) == made.made["faces"] > 100
    assert np.isfinite(mesh_of(made).vertices).all()


def test_the_cost_grows_with_the_grid_and_as_many_run_as_are_set(shelf: Shelf) -> None:
    stepper = shelf.stepper("shap-e")

    assert stepper.cost(request("shap-e", grid_size=32)) < stepper.cost(request("shap-e", grid_size=64))
    assert stepper.max_active == MAX_BATCH_SIZE


# --- failures ---


def changed(settings: Settings, folder: Path, model: str, file: str, change: Any) -> MeshStepper:
    """Copy a checkpoint, let `change` change the weights in `file`, and load it."""
    recipe = MODELS[model].revision_in("tiny").removeprefix("tiny:")
    shutil.copytree(settings.data_dir / "tiny" / recipe, folder / "tiny" / recipe)
    path = folder / "tiny" / recipe / file / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return Finely(MODELS[model], settings.model_copy(update={"data_dir": folder}))


def last_bias(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the network that says what is at a point: the first of it is the distance's."""
    return tensors[max(name for name in tensors if name.startswith("mlp.mlp.") and name.endswith("bias"))]


def failure(stepper: MeshStepper, model: str) -> Exception | None:
    ((made,), _) = drive(stepper, Arrival(request(model)))
    assert made.outputs == []
    return made.error


def test_an_empty_shape_is_a_failure_with_advice(shelf: Shelf, tmp_path: Path) -> None:
    hollow = changed(shelf.settings, tmp_path, "shap-e", "shap_e_renderer", lambda w: last_bias(w)[0].fill_(-1e6))

    with pytest.raises(GenerationFailed, match="empty shape; try another"):
        raise failure(hollow, "shap-e") or AssertionError


@by_model
@pytest.mark.parametrize("part", ["prior", "distance", "colour"])
def test_numbers_that_are_none_are_a_failure_and_not_an_answer(
    shelf: Shelf, model: str, part: str, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        match part:
            case "prior":
                tensors["proj_in.bias"].fill_(torch.nan)
            case "distance":
                last_bias(tensors)[0] = torch.nan
            case "colour":
                last_bias(tensors)[3:6] = torch.nan

    broken = changed(shelf.settings, tmp_path, model, "prior" if part == "prior" else "shap_e_renderer", spoil)

    with pytest.raises(GenerationFailed, match="overflowed"):
        raise failure(broken, model) or AssertionError


# --- texts that nobody expected ---


def passes(text: str) -> bool:
    try:
        return bool(check_is_text(text))
    except ValueError:
        return False


@quickly(max_examples=8)
@given(texts=st.lists(st.text(min_size=1, max_size=60).filter(passes), min_size=1, max_size=3))
def test_any_texts_that_pass_make_meshes_together(shelf: Shelf, texts: Sequence[str]) -> None:
    asks = [Arrival(request("shap-e", prompt=text, num_inference_steps=2, grid_size=8)) for text in texts]
    made, _ = drive(shelf.stepper("shap-e"), *asks)

    assert all(len(one.outputs) == 1 for one in made)
