"""Adapters of Stable Diffusion: each row its own, and whoever has none is as before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from services.engine.lora_file import FILE, METADATA
from services.errors import ModelUnavailable
from services.image.edit import Edit
from services.image.engine import ImageStepper, Phase
from services.image.schema import ImageJob, ImageRequest
from services.registry import Model, load_models
from services.schema import complete
from services.settings import Settings
from tests.services.stepping import Arrival, alone, run

PLAIN = next(model for model in load_models() if model.id == "tiny-sd")
PIXEL_TOLERANCE = 2

Tensors = dict[str, torch.Tensor]


def adapted(*adapters: dict[str, Any]) -> Model:
    return Model.model_validate({**PLAIN.model_dump(), "adapters": adapters})


INK = {"name": "ink", "tiny": {"recipe": "image_lora"}}
MODEL = adapted(INK, {**INK, "name": "chalk", "scale": -0.5})


def edit(adapter: str | None = None, **fields: Any) -> Edit:
    request = ImageRequest(prompt="a cat", num_inference_steps=5, adapter=adapter, **fields)
    return Edit(complete(ImageJob, request, MODEL.defaults_in("tiny")))


@pytest.fixture(scope="module")
def stepper(worker_settings: Settings) -> ImageStepper:
    return ImageStepper(MODEL, worker_settings)


@pytest.fixture(scope="module")
def halves(worker_settings: Settings) -> Tensors:
    return load_file(worker_settings.data_dir / "tiny" / "image_lora" / FILE)


def picture(stepper: ImageStepper, request: Edit, seed: int = 3) -> Any:
    return alone(stepper, request, seed).outputs[0].astype(int)


@torch.inference_mode()
def merged(settings: Settings, halves: Tensors, scale: float) -> Any:
    """What the library's own call makes where the adapter has become part of the weights."""
    pipeline: Any = DiffusionPipeline.from_pretrained(settings.data_dir / "tiny" / "image")
    pipeline.set_progress_bar_config(disable=True)
    for key, down in halves.items():
        network, _, name = key.removesuffix(".lora_A.weight").partition(".")
        if key.endswith(".lora_A.weight"):
            up = halves[key.replace("lora_A", "lora_B")]
            weight = getattr(pipeline, network).get_submodule(name).weight
            weight += scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    generator = torch.Generator().manual_seed(3)
    made = pipeline("a cat", num_inference_steps=5, guidance_scale=7.5, generator=generator, output_type="np")
    return (made.images[0] * 255).round()


@pytest.mark.parametrize(("name", "scale"), [("ink", 1.0), ("chalk", -0.5)])
def test_an_adapter_is_as_if_it_were_part_of_the_weights(
    stepper: ImageStepper, worker_settings: Settings, halves: Tensors, name: str, scale: float
) -> None:
    made = picture(stepper, edit(name))

    assert np.abs(made - merged(worker_settings, halves, scale)).max() <= PIXEL_TOLERANCE
    assert np.abs(made - picture(stepper, edit())).mean() > 3


def test_who_asks_for_none_gets_what_there_was_before(stepper: ImageStepper, worker_settings: Settings) -> None:
    plain = ImageStepper(PLAIN, worker_settings)
    picture(stepper, edit("ink"))

    assert (picture(stepper, edit()) == picture(plain, edit())).all()


def test_requests_with_other_adapters_share_forwards(stepper: ImageStepper) -> None:
    asked = [edit(), edit("ink"), edit("chalk"), edit("ink", guidance_scale=1)]
    recorders, forwards = run(stepper, [Arrival(request, 3, tick) for tick, request in enumerate(asked)])

    assert max(len(forward.members) for forward in forwards if forward.phase is Phase.DENOISE) == 4
    for request, recorder in zip(asked, recorders, strict=True):
        assert np.abs(recorder.outputs[0] - picture(stepper, request)).max() <= PIXEL_TOLERANCE


def test_a_request_that_must_repeat_does_so_to_the_byte(stepper: ImageStepper) -> None:
    first = picture(stepper, edit("ink", deterministic=True))
    recorders, _ = run(stepper, [Arrival(edit("ink", deterministic=True), 3), Arrival(edit("chalk")), Arrival(edit())])

    assert (recorders[0].outputs[0] == first).all()


# --- layouts ---


def old(halves: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Diffusers' own, before PEFT."""
    found = {}
    for key, half in halves.items():
        new = key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        new = new.replace("_proj.lora.", "_proj.lora_linear_layer.").replace(
            "text_encoder.", "text_encoder.text_model."
        )
        for name in ("q", "k", "v", "out.0"):
            new = new.replace(f"to_{name}.lora.", f"processor.to_{name[:3].rstrip('.')}_lora.")
        found[new] = half
    return found, {}


def kohya(halves: Tensors) -> tuple[Tensors, dict[str, str]]:
    """kohya-ss's, with an alpha of half the rank, and so twice the weights."""
    found = {}
    for key, half in halves.items():
        layer, end = key.rsplit(".lora_", 1)
        flat = layer.replace("text_encoder.", "lora_te_text_model_").replace("unet.", "lora_unet_").replace(".", "_")
        found[f"{flat}.alpha"] = torch.tensor(2.0)
        found[f"{flat}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = half * (2 if end[0] == "B" else 1)
    return found, {}


def told(halves: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Diffusers' own, with alphas in the file's head."""
    head = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"conv1": 2}, "text_encoder.lora_alpha": 4}
    factors = {
        key: 1 if key.startswith("text") or "lora_A" in key else 2 if ".conv1." in key else 0.5 for key in halves
    }
    return {key: half * factors[key] for key, half in halves.items()}, {METADATA: json.dumps(head)}


@pytest.mark.parametrize("layout", [old, kohya, told])
def test_an_adapter_may_come_in_any_of_the_usual_layouts(
    stepper: ImageStepper, worker_settings: Settings, halves: Tensors, layout: Any, tmp_path: Path
) -> None:
    tensors, head = layout(halves)
    save_file(tensors, tmp_path / "mine.safetensors", head)
    other = ImageStepper(adapted({"name": "ink", "folder": {"path": tmp_path}}), worker_settings)

    assert np.abs(picture(other, edit("ink")) - picture(stepper, edit("ink"))).max() <= PIXEL_TOLERANCE


def one(name: str, *shape: int) -> Tensors:
    return {name: torch.zeros(shape)}


DOWN, UP = "unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, f"has no {FILE}"),
        (one(DOWN, 4, 4, 3, 3), "do not come in pairs"),
        (one("unet.conv_in.lora_magnitude_vector", 4), "'unet.conv_in.lora_magnitude_vector' in it is of no kind"),
        (one("transformer.x.lora_A.weight", 4, 4), "belongs to no network of Stable Diffusion"),
        (one(DOWN, 4, 9, 3, 3) | one(UP, 16, 4, 1, 1), "it is for a unet whose conv_in is another"),
        (one(DOWN, 4, 4, 3, 3) | one(UP, 16, 5, 1, 1), "it is for a unet whose conv_in is another"),
        (one(DOWN.replace("in", "up"), 4, 4) | one(UP.replace("in", "up"), 4, 4), "a unet whose conv_up is another"),
    ],
)
def test_what_cannot_be_added_is_a_sentence(
    worker_settings: Settings, tmp_path: Path, tensors: Tensors, said: str
) -> None:
    if tensors:
        save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(ModelUnavailable, match=said) as refusal:
        ImageStepper(adapted({"name": "ink", "folder": {"path": tmp_path}}), worker_settings)
    assert refusal.value.message.startswith("adapter 'ink' cannot be added to this model: ")


def test_a_damaged_file_is_a_sentence(worker_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no weights")
    with pytest.raises(ModelUnavailable, match=r"^adapter 'ink' cannot be added to this model: "):
        ImageStepper(adapted({"name": "ink", "folder": {"path": tmp_path}}), worker_settings)
