"""A Stable Video Diffusion whose films are moving noise: 8 frames by default, 64 pixels when asked for."""

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from services.tiny.workbench import workbench

WIDTH = 32  # of the image's embedding, which the UNet attends to
IMAGE_SIZE = 224  # to which the pipeline resizes what it embeds, whatever the configuration says


@workbench()
def build(target: Path) -> None:
    """Write the pipeline into the folder."""
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            projection_dim=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=32,
        )
    )
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pipeline: Any = StableVideoDiffusionPipeline(
        vae=_vae(),
        image_encoder=image_encoder,
        unet=_unet(),
        scheduler=scheduler(),
        feature_extractor=CLIPImageProcessorPil(crop_size=crop, size={"shortest_edge": IMAGE_SIZE}),
    )
    pipeline.save_pretrained(target)


def _vae() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),  # four blocks: 8 pixels a latent; 32 is the least its norms can group
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        sample_size=64,
        force_upcast=True,
    )


def _unet() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,  # the noisy latents and the first frame's
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        transformer_layers_per_block=1,
        num_attention_heads=(2, 4),
        cross_attention_dim=WIDTH,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=3 * 32,  # frame rate, motion, noise
        num_frames=8,
    )


def scheduler(sigma_min: float = 0.002, sigma_max: float = 700.0) -> EulerDiscreteScheduler:
    """Return the published model's schedule, unless it is to begin or end elsewhere."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        interpolation_type="linear",
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )
