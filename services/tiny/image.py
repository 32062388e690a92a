"""A Stable Diffusion of 64 pixels that paints coloured noise."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from services.tiny.vocabulary import MAX_PROMPT, prompt_tokenizer
from services.tiny.workbench import workbench

WIDTH = 32  # of a token's embedding, which the UNet attends to


@workbench()
def build(target: Path) -> None:
    """Write the pipeline into the folder; without a safety checker, as no picture means anything."""
    encoder = text_encoder()
    pipeline: Any = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=encoder,
        tokenizer=prompt_tokenizer(),
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(target)


def text_encoder() -> CLIPTextModel:
    """Return the prompts' encoder, with new weights."""
    tokenizer = prompt_tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_PROMPT,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16, 16, 16),  # four blocks: 8 pixels a latent
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
    )


def unet() -> UNet2DConditionModel:
    """Return the denoiser, with new weights."""
    return UNet2DConditionModel(
        sample_size=8,  # latents: 64 pixels unless asked otherwise
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def scheduler(**more: Any) -> DPMSolverMultistepScheduler:
    """Return the usual one, told `more`."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        **more,
    )
