"""A Wan whose films are moving noise, another for every prompt: 9 frames of 64 pixels when asked for so few."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from services.tiny.vocabulary import film_tokenizer
from services.tiny.workbench import workbench

WIDTH = 32  # of a token's embedding, which the transformer attends to
CHANNELS = 16  # of the latents
ATTENTION = 3.0  # times the norms of queries and keys as drawn
LOUDNESS = 8.0  # times what attending to the prompt adds


@workbench()
def build(target: Path) -> None:
    """Write the pipeline into the folder."""
    tokenizer = film_tokenizer()
    pipeline: Any = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder(tokenizer, WIDTH),
        vae=_vae(),
        scheduler=scheduler(),
        transformer=_transformer(),
    )
    pipeline.save_pretrained(target)


def text_encoder(tokenizer: PreTrainedTokenizerBase, width: int) -> UMT5EncoderModel:
    """Return one with random weights, which reads this tokenizer's tokens; nothing of it drops out."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            feed_forward_proj="gated-gelu",
        )
    )


def scheduler(prediction_type: str = "flow_prediction") -> UniPCMultistepScheduler:
    """Return the published model's schedule."""
    return UniPCMultistepScheduler(
        prediction_type=prediction_type, use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, z_dim=CHANNELS, dim_mult=[1, 2, 2, 2], num_res_blocks=1)


@torch.no_grad()
def _transformer() -> Any:
    """Return a transformer that hears its prompt: spread over 512 places that are padding mostly, it would not."""
    transformer: Any = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=96,
        num_layers=2,
    )
    for block in transformer.blocks:
        block.attn2.norm_q.weight.mul_(ATTENTION)
        block.attn2.norm_k.weight.mul_(ATTENTION)
        block.attn2.to_out[0].weight.mul_(LOUDNESS)
    return transformer
