"""Stable Diffusion by the step: whatever the company, what the library's own call makes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from services.errors import Cancelled, InvalidRequest
from services.image.edit import Edit
from services.image.engine import SCHEDULERS, Drawing, ImageStepper, Phase
from services.image.schema import ImageJob, ImageRequest
from services.registry import load_models
from services.schema import complete, parse_size
from services.settings import Settings
from tests.services.stepping import Arrival, Forward, alone, run

MODEL = next(model for model in load_models() if model.id == "tiny-sd")
PICTURE = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
MASK = Image.new("L", (64, 64))
MASK.paste(255, (16, 8, 48, 40))
LATENT_TOLERANCE = 1e-3  # of their standard deviation
PIXEL_TOLERANCE = 2


class Watched(ImageStepper):
    """Keeps the latents of every drawing as they went into the decoder."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.latents: dict[int, torch.Tensor] = {}  # by the id of the run

    def key(self, state: Drawing) -> Any:
        if state.phase is Phase.DECODE:
            self.latents[id(state.run)] = state.latents
        return super().key(state)


@pytest.fixture(scope="module")
def stepper(worker_settings: Settings) -> Watched:
    return Watched(MODEL, worker_settings)


@pytest.fixture(scope="module")
def pipelines(data_dir: Path) -> dict[str, Any]:
    return load_pipelines(data_dir)


def load_pipelines(data_dir: Path) -> dict[str, Any]:
    """The library's own, by what they make a picture from."""
    drawing: Any = DiffusionPipeline.from_pretrained(data_dir / "tiny" / "image")
    redrawing: Any = StableDiffusionImg2ImgPipeline(**drawing.components, requires_safety_checker=False)
    painting: Any = StableDiffusionInpaintPipeline(**drawing.components, requires_safety_checker=False)
    for pipeline in (drawing, redrawing, painting):
        pipeline.set_progress_bar_config(disable=True)
    return {"text": drawing, "picture": redrawing, "mask": painting}


def edit(source: str = "text", strength: float = 0.8, **fields: Any) -> Edit:
    request = ImageRequest(**{"prompt": "a cat", "num_inference_steps": 4, **fields})
    job = complete(ImageJob, request, MODEL.defaults_in("tiny"))
    size = parse_size(job.size)
    picture = None if source == "text" else PICTURE.resize(size)
    return Edit(job, picture, MASK.resize(size) if source == "mask" else None, strength)


@torch.inference_mode()
def reference(pipelines: dict[str, Any], request: Edit, seed: int) -> tuple[torch.Tensor, Any]:
    """What the library's own call makes: latents, and the picture in [0, 255]."""
    source = "text" if request.picture is None else "picture" if request.mask is None else "mask"
    pipeline, job = pipelines[source], request.job
    own = pipeline.scheduler
    if job.scheduler is not None:
        made, settings = SCHEDULERS[job.scheduler]
        pipeline.scheduler = made.from_config(own.config, **settings)
    width, height = parse_size(job.size)
    given: dict[str, Any] = {} if source == "picture" else {"width": width, "height": height}
    if source != "text":
        given |= {"image": request.picture, "strength": request.strength}
    if source == "mask":
        given["mask_image"] = request.mask
    try:
        latents = pipeline(
            job.prompt,
            negative_prompt=job.negative_prompt,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **given,
        ).images
    finally:
        pipeline.scheduler = own
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return latents, (pipeline.image_processor.postprocess(decoded, output_type="np")[0] * 255).round()


def assert_equal(stepper: Watched, pipelines: dict[str, Any], arrival: Arrival, recorder: Any) -> None:
    assert recorder.error is None
    latents = stepper.latents[id(recorder)]
    expected, picture = reference(pipelines, arrival.request, arrival.seed)
    assert (latents - expected).abs().max() <= LATENT_TOLERANCE * expected.std()
    assert np.abs(recorder.outputs[0].astype(int) - picture).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("source", ["text", "picture", "mask"])
def test_alone_it_is_the_librarys_own(
    stepper: Watched, pipelines: dict[str, Any], source: str, scheduler: str | None
) -> None:
    arrival = Arrival(edit(source, scheduler=scheduler, num_inference_steps=7, negative_prompt="a dog"), seed=3)
    (recorder,), _ = run(stepper, [arrival])

    assert_equal(stepper, pipelines, arrival, recorder)
    assert recorder.progress[-1][0] == recorder.progress[-1][1] == len(recorder.progress)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("source", ["picture", "mask"])
def test_a_strength_is_the_librarys(stepper: Watched, pipelines: dict[str, Any], source: str, strength: float) -> None:
    arrival = Arrival(edit(source, strength, num_inference_steps=5), seed=4)
    (recorder,), _ = run(stepper, [arrival])

    assert_equal(stepper, pipelines, arrival, recorder)


requests = st.builds(
    edit,
    source=st.sampled_from(["text", "text", "picture", "mask"]),
    strength=st.sampled_from([0.5, 1.0]),
    prompt=st.sampled_from(["a cat", "two red lighthouses at dusk", "x"]),
    negative_prompt=st.sampled_from([None, "blurred"]),
    num_inference_steps=st.integers(2, 9),
    guidance_scale=st.sampled_from([0.0, 1.0, 3.5, 7.5]),
    size=st.sampled_from(["64x64", "64x64", "72x64"]),
    scheduler=st.sampled_from([None, *SCHEDULERS]),
)
arrivals = st.lists(
    st.builds(Arrival, request=requests, seed=st.integers(0, 5), tick=st.integers(0, 8)), min_size=2, max_size=5
)


@examples(max_examples=10)
@given(arrivals=arrivals)
def test_in_any_company_it_is_the_librarys_own(
    stepper: Watched, pipelines: dict[str, Any], arrivals: list[Arrival]
) -> None:
    recorders, _ = run(stepper, arrivals)

    for arrival, recorder in zip(arrivals, recorders, strict=True):
        assert_equal(stepper, pipelines, arrival, recorder)


def test_requests_of_any_kind_share_forwards(stepper: Watched) -> None:
    together = [
        Arrival(edit(num_inference_steps=9)),
        Arrival(edit(num_inference_steps=5, guidance_scale=1, scheduler="euler"), tick=2),
        Arrival(edit("mask", num_inference_steps=6, scheduler="ddim"), tick=3),
    ]
    _, forwards = run(stepper, together)
    denoising = [forward for forward in forwards if has(forward, Phase.DENOISE)]

    assert max(len(forward.members) for forward in denoising) == 3
    assert len(denoising) < 9 + 5 + 6


def has(forward: Forward, phase: Phase) -> bool:
    return isinstance(forward.key, tuple) and forward.key[0] is phase


def test_who_fails_or_leaves_changes_nothing_for_the_others(
    stepper: Watched, pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = [
        Arrival(edit(num_inference_steps=6), seed=1),
        Arrival(edit(num_inference_steps=6, scheduler="euler"), seed=2),  # fails at its third step
        Arrival(edit(num_inference_steps=6), seed=3, stop_after=4),  # leaves
    ]
    euler = SCHEDULERS["euler"][0]
    euler_step = euler.step

    def fail_late(scheduler: Any, *arguments: Any, **named: Any) -> Any:
        if scheduler.step_index == 2:
            raise ZeroDivisionError
        return euler_step(scheduler, *arguments, **named)

    fail_late.generator = None  # type: ignore[attr-defined]
    monkeypatch.setattr(euler, "step", fail_late)
    recorders, _ = run(stepper, together)

    assert isinstance(recorders[1].error, ZeroDivisionError)
    assert isinstance(recorders[2].error, Cancelled)
    assert_equal(stepper, pipelines, together[0], recorders[0])


def test_a_forward_that_failed_can_be_run_again(stepper: Watched, pipelines: dict[str, Any]) -> None:
    """The engine does that when memory did not suffice, so nothing may have changed."""
    real = stepper.forward
    is_first: dict[int, bool] = {}

    def flaky(states: Any) -> Any:
        rows = real(states)
        if len(states) > 1 and is_first.setdefault(states[0].step, True):
            is_first[states[0].step] = False
            raise MemoryError
        return rows

    together = [Arrival(edit("mask", scheduler=name), seed=5) for name in SCHEDULERS]
    stepper.forward = flaky  # type: ignore[method-assign]
    try:
        recorders, _ = run(stepper, together)
    finally:
        del stepper.forward

    for arrival, recorder in zip(together, recorders, strict=True):
        assert_equal(stepper, pipelines, arrival, recorder)


@pytest.mark.parametrize("source", ["text", "picture", "mask"])
def test_it_stops_at_the_iteration_after_which_its_caller_is_gone(stepper: Watched, source: str) -> None:
    whole = alone(stepper, edit(source))
    for stop_after in range(1, len(whole.progress) + 1):
        (recorder,), _ = run(stepper, [Arrival(edit(source), stop_after=stop_after)])
        assert isinstance(recorder.error, Cancelled)
        assert len(recorder.progress) == stop_after


@pytest.mark.parametrize("size", ["64x64", "64x256", "512x512"])
def test_a_preview_is_a_small_picture_of_the_same_shape(stepper: Watched, size: str) -> None:
    recorder = alone(stepper, edit(num_inference_steps=1, size=size))
    sketches: list[Any] = []

    class Sketching(Watched):
        def advance(self, state: Drawing, row: Any) -> Any:
            result = super().advance(state, row)
            sketches.append(self.preview(state))
            return result

    stepper.__class__ = Sketching
    try:
        alone(stepper, edit(num_inference_steps=3, size=size))
    finally:
        stepper.__class__ = Watched

    width, height = parse_size(size)
    shown = [sketch for sketch in sketches if sketch is not None]
    assert len(shown) == 2  # after the first and the second step; the third is followed by the picture itself
    for sketch in shown:
        assert sketch.dtype == np.uint8
        assert max(sketch.shape[:2]) <= 128
        assert abs(sketch.shape[1] / sketch.shape[0] - width / height) < 0.1
    assert recorder.outputs[0].shape == (height, width, 3)


def test_a_larger_picture_costs_more(stepper: Watched) -> None:
    assert stepper.cost(edit(size="512x512")) == 64 * stepper.cost(edit(size="64x64")) > 0


def test_a_strength_that_leaves_no_step_is_refused(stepper: Watched) -> None:
    with pytest.raises(InvalidRequest, match="strength") as refusal:
        alone(stepper, edit("picture", strength=0.1, num_inference_steps=4), stop_after=0)
    assert refusal.value.param == "strength"


# --- a network made for inpainting: mask and masked picture are among its inputs ---


def altered(settings: Settings, folder: Path, **config: Any) -> tuple[Watched, dict[str, Any]]:
    """The model with another denoiser, and the library's pipelines of it."""
    shutil.copytree(settings.data_dir / "tiny" / "image", folder / "tiny" / "image")
    unet: Any = UNet2DConditionModel
    torch.manual_seed(0)
    config = {**unet.load_config(folder / "tiny" / "image" / "unet"), **config}
    unet.from_config(config).save_pretrained(folder / "tiny" / "image" / "unet")
    return Watched(MODEL, settings.model_copy(update={"data_dir": folder})), load_pipelines(folder)


@pytest.fixture(scope="module")
def painter(worker_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Watched, dict[str, Any]]:
    return altered(worker_settings, tmp_path_factory.mktemp("painter"), in_channels=9)


def test_a_network_made_for_inpainting_is_the_librarys_own(painter: tuple[Watched, dict[str, Any]]) -> None:
    stepper, pipelines = painter
    together = [Arrival(edit("mask", strength=1.0), seed=1), Arrival(edit("mask", guidance_scale=1), seed=2, tick=2)]
    recorders, _ = run(stepper, together)

    for arrival, recorder in zip(together, recorders, strict=True):
        assert_equal(stepper, pipelines, arrival, recorder)


@pytest.mark.parametrize("source", ["text", "picture"])
def test_a_network_made_for_inpainting_needs_a_mask(painter: tuple[Watched, dict[str, Any]], source: str) -> None:
    with pytest.raises(InvalidRequest, match="mask") as refusal:
        alone(painter[0], edit(source), stop_after=0)
    assert refusal.value.param == "mask"


@pytest.mark.parametrize("source", ["text", "picture"])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_network_that_takes_the_guidance_as_an_input_is_the_librarys_own(
    worker_settings: Settings, tmp_path: Path, source: str, guidance_scale: float
) -> None:
    stepper, pipelines = altered(worker_settings, tmp_path, time_cond_proj_dim=16)
    together = [
        Arrival(edit(source, guidance_scale=guidance_scale), seed=1),
        Arrival(edit("text", guidance_scale=3), seed=2, tick=2),
    ]
    recorders, _ = run(stepper, together)

    for arrival, recorder in zip(together, recorders, strict=True):
        assert_equal(stepper, pipelines, arrival, recorder)


@pytest.mark.parametrize(
    ("source", "strength", "num_steps"), [("text", 1.0, 10), ("picture", 0.3, 3), ("mask", 0.5, 5)]
)
def test_usage_counts_the_steps_that_were_made(stepper: Watched, source: str, strength: float, num_steps: int) -> None:
    made = alone(stepper, edit(source, strength, num_inference_steps=10))

    assert made.made == {"images": 1, "pixel_steps": 64 * 64 * num_steps}
