"""A Stable Diffusion of 64 pixels, before it is trained."""

from typing import Any

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from services.tiny.image import scheduler
from services.tiny.train.codec import LATENTS, codec
from services.tiny.train.scenes import WORDS
from services.tiny.vocabulary import MAX_CAPTION, caption_tokenizer
from services.tiny.workbench import workbench

WIDTH = 96  # of a token's embedding, which the UNet attends to


@workbench()
def untrained() -> Any:
    """Return the pipeline with random weights; without a safety checker, as there is nothing to check shapes for."""
    tokenizer = caption_tokenizer(WORDS)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_CAPTION,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return StableDiffusionPipeline(
        vae=codec(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=scheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet() -> Any:
    unet: Any = UNet2DConditionModel(
        sample_size=8,  # latents: 64 pixels unless asked otherwise
        in_channels=LATENTS,
        out_channels=LATENTS,
        layers_per_block=1,
        block_out_channels=(48, 128),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )
    for block in unet.modules():  # each begins as nothing, as Dhariwal and Nichol (2021) have it: it learns sooner
        if isinstance(block, ResnetBlock2D):
            silence(block.conv2)
        elif isinstance(block, Transformer2DModel):
            silence(block.proj_out)
    silence(unet.conv_out)
    return unet


def silence(layer: Any) -> None:
    """Let all that a layer makes be nothing, as yet."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
