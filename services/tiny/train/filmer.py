"""A Stable Video Diffusion of 64 pixels, before it is trained."""

from typing import Any

from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from services.tiny.train.codec import LATENTS
from services.tiny.train.film_codec import film_codec
from services.tiny.train.motion import NUM_FRAMES
from services.tiny.train.painter import silence
from services.tiny.video import IMAGE_SIZE, scheduler
from services.tiny.workbench import workbench

SIGMAS = 0.05, 30.0  # where there is noise to see: half of the published model's steps would be elsewhere
WIDTH = 64  # of the picture's embedding, which the UNet attends to


@workbench()
def untrained() -> Any:
    """Return the pipeline with random weights."""
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            projection_dim=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=32,
        )
    )
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return StableVideoDiffusionPipeline(
        vae=film_codec(),
        image_encoder=image_encoder,
        unet=_unet(),
        scheduler=scheduler(*SIGMAS),
        feature_extractor=CLIPImageProcessorPil(crop_size=crop, size={"shortest_edge": IMAGE_SIZE}),
    )


def _unet() -> Any:
    unet: Any = UNetSpatioTemporalConditionModel(
        sample_size=8,  # latents: 64 pixels unless asked otherwise
        in_channels=2 * LATENTS,  # the noisy ones and the first frame's
        out_channels=LATENTS,
        layers_per_block=1,
        block_out_channels=(96,),
        down_block_types=("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",),
        num_attention_heads=4,
        cross_attention_dim=WIDTH,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=3 * 32,  # frame rate, motion, noise
        num_frames=NUM_FRAMES,
    )
    for block in unet.modules():  # each begins as nothing, as those of `shapes`
        if isinstance(block, ResnetBlock2D | TemporalResnetBlock):
            silence(block.conv2)
        elif isinstance(block, TransformerSpatioTemporalModel):
            silence(block.proj_out)
    silence(unet.conv_out)
    return unet
