"""Eight bits a weight: less memory, and results that are nearly the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from services.engine.quantising import quantise
from services.engine.stepper import WholeCall
from services.engine.weights import load_pipeline, open_weights, weigh
from services.image.edit import Edit
from services.image.engine import ImageStepper
from services.image.schema import ImageJob, ImageRequest
from services.mesh.engine import MeshStepper
from services.mesh.schema import MeshJob, MeshRequest
from services.registry import Model, load_models
from services.schema import complete
from services.settings import Settings
from services.video.engine import FilmStepper, TextFilmGenerator
from services.video.schema import TextVideoJob, VideoJob, VideoRequest
from tests.services.stepping import alone

MODELS = {model.id: model for model in load_models()}
PICTURE = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
Make = Callable[[Model, Settings], Any]


def film_of_text(model: Model, settings: Settings) -> WholeCall:
    return WholeCall(TextFilmGenerator(model, settings))


def job(contract: type[Any], request: Any, model: str) -> Any:
    return complete(contract, request, MODELS[model].defaults_in("tiny"))


DRAWN = Edit(job(ImageJob, ImageRequest(prompt="a cat"), "tiny-sd"))
FILMED = job(VideoJob, VideoRequest(num_frames=4), "stable-video-diffusion-img2vid")
WRITTEN = job(TextVideoJob, VideoRequest(prompt="a cat"), "wan2.1-t2v-1.3b")
SHAPED = job(MeshJob, MeshRequest(prompt="a cat", grid_size=16), "shap-e")
MOULDED = job(MeshJob, MeshRequest(image="QUJD", grid_size=16), "shap-e-img2img")


@pytest.mark.parametrize(
    ("model", "make", "asked", "least"),  # least PSNR in dB; a random Wan shows the most
    [
        ("tiny-sd", ImageStepper, DRAWN, 45),
        ("stable-video-diffusion-img2vid", FilmStepper, (FILMED, PICTURE), 45),
        ("wan2.1-t2v-1.3b", film_of_text, WRITTEN, 30),
    ],
)
def test_pictures_stay_close(worker_settings: Settings, model: str, make: Make, asked: Any, least: float) -> None:
    plain = make(MODELS[model], worker_settings)
    small = make(quantised(model), worker_settings)
    expected = np.stack(alone(plain, asked, 3).outputs).astype(float)
    made = np.stack(alone(small, asked, 3).outputs)

    assert 10 * np.log10(255**2 / max(np.mean((made - expected) ** 2), 1e-9)) > least
    assert weigh(small) < 0.85 * weigh(plain)


@pytest.mark.parametrize(("model", "asked"), [("shap-e", (SHAPED, None)), ("shap-e-img2img", (MOULDED, PICTURE))])
def test_meshes_stay_close(worker_settings: Settings, model: str, asked: Any) -> None:
    expected, made = (
        alone(MeshStepper(entry, worker_settings), asked, 3).outputs[0] for entry in (MODELS[model], quantised(model))
    )

    for bound in (np.min, np.max):
        assert np.abs(bound(made.vertices, axis=0) - bound(expected.vertices, axis=0)).max() < 0.05


def quantised(model: str) -> Model:
    return MODELS[model].model_copy(update={"quantisation": "int8"})


@pytest.mark.parametrize("model", ["tiny-sd", "stable-video-diffusion-img2vid", "wan2.1-t2v-1.3b", "shap-e"])
def test_what_decodes_keeps_its_weights(worker_settings: Settings, model: str) -> None:
    parts = load_pipeline(quantised(model), worker_settings).components
    bits = {
        name: torch.int8 in {weight.dtype for weight in part.parameters()}
        for name, part in parts.items()
        if isinstance(part, nn.Module)
    }

    kept = {"vae", "shap_e_renderer"}
    assert {name for name, is_small in bits.items() if not is_small} == kept & bits.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "sizes"), [(nn.Linear, (9, 5)), (nn.Conv2d, (3, 5, 3)), (nn.Conv3d, (2, 4, 1))])
def test_a_weight_is_off_by_half_a_step_at_most(kind: Any, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = kind(*sizes, dtype=dtype)
    before = layer.weight.detach().clone()
    quantise([layer])

    step = before.float().abs().amax(dim=tuple(range(1, before.dim())), keepdim=True) / 127
    rounding = before.float().abs() * torch.finfo(dtype).eps * 2
    assert layer.weight.dtype == dtype
    assert ((layer.weight - before).float().abs() <= 0.52 * step + rounding).all()


def test_a_row_of_zeros_stays_one() -> None:
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    quantise([layer])

    assert not layer.weight.any()


# --- the precision of an entry ---


@pytest.mark.parametrize("setting", ["auto", "float32"])
def test_an_entrys_precision_holds_on_any_device(worker_settings: Settings, setting: str) -> None:
    model = MODELS["tiny-sd"].model_copy(update={"dtype": "bfloat16"})
    settings = worker_settings.model_copy(update={"dtype": setting})

    assert open_weights(model, settings).dtype == torch.bfloat16
