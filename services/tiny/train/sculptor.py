"""A Shap-E for texts, another for pictures, and what renders for both, before they are trained."""

from typing import Any

import torch
from diffusers import PriorTransformer, ShapEImg2ImgPipeline, ShapEPipeline
from diffusers.pipelines.shap_e.renderer import ShapERenderer
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from services.tiny import marching_cubes
from services.tiny.mesh import NUM_FEATURES, NUM_PROJECTED, scheduler
from services.tiny.train.solids import NUM_NUMBERS, WORDS
from services.tiny.train.views import SIDE
from services.tiny.vocabulary import MAX_CAPTION, caption_tokenizer
from services.tiny.workbench import workbench

HIDDEN = 32  # units of what renders
WIDTH = 64  # of all that reads, sees and denoises
PATCH = 8  # pixels
NUM_WAVES = 3  # of the 15 that a coordinate is told in, the longest: of shorter ones a tiny network makes wrinkles


@workbench()
def renderer() -> Any:
    """Return what says of a latent how deep inside each point is, and of which colour."""
    rows = (HIDDEN, NUM_FEATURES), *((HIDDEN, HIDDEN),) * (NUM_PROJECTED - 1)
    made: Any = ShapERenderer(
        param_names=tuple(f"nerstf.mlp.{layer}.weight" for layer in range(NUM_PROJECTED)),
        param_shapes=rows,
        d_latent=NUM_NUMBERS,
        d_hidden=HIDDEN,
        n_output=12,
        n_hidden_layers=6,
        insert_direction_at=NUM_PROJECTED,
    )
    cases, masks = marching_cubes.tables()
    made.mesh_decoder.load_state_dict({"cases": cases, "masks": masks})
    for projection, (_, num_inputs) in zip(made.params_proj.projections.values(), rows, strict=True):
        nn.init.normal_(projection.proj.bias, std=num_inputs**-0.5)
        nn.init.constant_(projection.norm.weight, num_inputs**-0.5)
    _leave_out(next(iter(made.params_proj.projections.values())))
    return made


def _leave_out(first: Any) -> None:
    """Let the first layer not hear of the short waves, and never learn to."""
    heard = torch.zeros(NUM_FEATURES)
    heard[:3] = 1  # the coordinates themselves
    for start in (3, 48):  # of the sines, and of the cosines
        heard[start : start + 3 * NUM_WAVES] = 1
    for weight, part in ((first.norm.weight, heard), (first.norm.bias, heard), (first.proj.bias, heard.repeat(HIDDEN))):
        weight.data *= part
        weight.register_hook(lambda gradient, part=part: gradient * part.to(gradient.device))


@workbench()
def from_text(rendering: Any) -> Any:
    """Return the pipeline that reads, with random weights but for what renders."""
    tokenizer = caption_tokenizer(WORDS)
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            projection_dim=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_CAPTION,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return ShapEPipeline(
        prior=_prior(None),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler(),
        shap_e_renderer=rendering,
    )


@workbench()
def from_image(rendering: Any) -> Any:
    """Return the pipeline that sees, with random weights but for what renders."""
    image_encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        )
    )
    return ShapEImg2ImgPipeline(
        prior=_prior("layer"),
        image_encoder=image_encoder,
        image_processor=CLIPImageProcessorPil(crop_size={"height": SIDE, "width": SIDE}, size={"shortest_edge": SIDE}),
        scheduler=scheduler(),
        shap_e_renderer=rendering,
    )


def _prior(condition_norm: str | None) -> Any:
    return PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=WIDTH // 4,
        num_layers=2,
        embedding_dim=NUM_NUMBERS,
        num_embeddings=NUM_PROJECTED * HIDDEN,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        time_embed_dim=WIDTH,
        norm_in_type="layer",
        embedding_proj_dim=WIDTH,
        embedding_proj_norm_type=condition_norm,
        encoder_hid_proj_type=None,
        added_emb_type=None,
        clip_embed_dim=2 * NUM_NUMBERS,
    )
