"""A Shap-E, from text or from an image, whose every latent is one closed coloured lump.

Freshly initialised, its renderer makes no surface at all: the marching-cubes tables are zeros, and random weights are
rarely positive anywhere. Here hidden unit 0 carries the depth below the surface, the others the colour.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEImg2ImgPipeline, ShapEPipeline
from diffusers.pipelines.shap_e.renderer import ShapERenderer
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from services.tiny import marching_cubes
from services.tiny.vocabulary import MAX_PROMPT, prompt_tokenizer
from services.tiny.workbench import workbench

LATENT = 16  # numbers a row
HIDDEN = 16  # units of the renderer's MLP
NUM_PROJECTED = 4  # of its layers have weights made from the latent, a row a unit
PROMPT_WIDTH = 24
IMAGE_WIDTH = 32
IMAGE_SIZE = 32

# The MLP sees a position as x, y, z, then the sines and the cosines of 1, 2, 4, … times x, y, z.
NUM_FEATURES = 93
VANISHING = slice(0, 12)  # x, y, z and the sines of 1, 2 and 4 times them: zero at the origin
COSINES = slice(48, 51)  # of x, y, z: their sum is 3 at the origin and falls off like a sphere
SURFACE = 2.72  # where the sum of cosines meets the surface of an undisturbed lump: a radius of 0.75
LIFT = 10.0  # silu(x) = x to four digits from here on: depth passes through it undistorted
BEND = 0.12  # how far a latent bends the lump; at the origin never, so it cannot vanish


@workbench()
def build(target: Path) -> None:
    """Write the text-to-3D pipeline into the folder."""
    tokenizer = prompt_tokenizer()
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            projection_dim=PROMPT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_PROMPT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pipeline: Any = ShapEPipeline(
        prior=_prior(PROMPT_WIDTH, None),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler(),
        shap_e_renderer=_renderer(),
    )
    pipeline.save_pretrained(target)


@workbench()
def build_from_image(target: Path) -> None:
    """Write the image-to-3D pipeline into the folder."""
    image_encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=IMAGE_WIDTH,
            intermediate_size=2 * IMAGE_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=8,
        )
    )
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pipeline: Any = ShapEImg2ImgPipeline(
        prior=_prior(IMAGE_WIDTH, "layer"),
        image_encoder=image_encoder,
        image_processor=CLIPImageProcessorPil(crop_size=crop, size={"shortest_edge": IMAGE_SIZE}),
        scheduler=scheduler(),
        shap_e_renderer=_renderer(),
    )
    pipeline.save_pretrained(target)


def _prior(condition_width: int, condition_norm: str | None) -> PriorTransformer:
    return PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=LATENT,
        num_embeddings=NUM_PROJECTED * HIDDEN,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        time_embed_dim=32,
        norm_in_type="layer",
        embedding_proj_dim=condition_width,
        embedding_proj_norm_type=condition_norm,
        encoder_hid_proj_type=None,
        added_emb_type=None,
        clip_embed_dim=2 * LATENT,
    )


def scheduler() -> HeunDiscreteScheduler:
    """Return the published model's schedule."""
    return HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )


@torch.no_grad()
def _renderer() -> ShapERenderer:
    renderer: ShapERenderer = ShapERenderer(
        param_names=tuple(f"nerstf.mlp.{layer}.weight" for layer in range(NUM_PROJECTED)),
        param_shapes=((HIDDEN, NUM_FEATURES), *((HIDDEN, HIDDEN),) * (NUM_PROJECTED - 1)),
        d_latent=LATENT,
        d_hidden=HIDDEN,
        n_output=12,
        n_hidden_layers=6,
        insert_direction_at=NUM_PROJECTED,
    )
    cases, masks = marching_cubes.tables()
    renderer.mesh_decoder.load_state_dict({"cases": cases, "masks": masks})
    for layer, projection in enumerate(renderer.params_proj.projections.values()):
        projection.norm.weight.zero_()
        projection.proj.bias.copy_((_passing(HIDDEN) if layer else _sensing()).flatten())
        if layer == 0:
            projection.norm.weight[VANISHING] = BEND
    _set_own_layers(renderer)
    return renderer


def _set_own_layers(renderer: ShapERenderer) -> None:
    """Set what no latent reaches: all biases, the last two hidden layers, the output."""
    *hidden, output = renderer.mlp.mlp
    for layer in hidden:
        layer.bias.zero_()
    hidden[0].bias[0] = LIFT - SURFACE
    for layer in hidden[NUM_PROJECTED:]:
        layer.weight.copy_(_passing(layer.in_features))
    output.weight.zero_()
    output.bias.zero_()
    for row, slope in ((0, 5.0), (1, 40.0), (2, 40.0)):  # signed distance, coarse and fine density
        output.weight[row, 0] = slope
        output.bias[row] = -slope * LIFT
    output.weight[3:, 1:] = torch.randn(3, HIDDEN - 1).mul(2.5).repeat(3, 1)  # the same colour in all three heads


def _sensing() -> torch.Tensor:
    """Return the first layer's weights before a latent bends them."""
    weight = torch.zeros(HIDDEN, NUM_FEATURES)
    weight[0, COSINES] = 1
    weight[1:, VANISHING] = torch.randn(HIDDEN - 1, VANISHING.stop)
    return weight


def _passing(num_inputs: int) -> torch.Tensor:
    """Return the weights of a layer that hands the depth on and mixes the colours."""
    weight = torch.zeros(HIDDEN, num_inputs)
    weight[0, 0] = 1
    weight[1:, 1:HIDDEN] = torch.randn(HIDDEN - 1, HIDDEN - 1).mul(1.6 / HIDDEN**0.5)
    return weight
