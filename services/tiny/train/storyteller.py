"""A Wan of 64 pixels, before it is trained: one token for each latent frame, so that it knows places by its own inputs.

Between tokens a Wan knows places by how far they are from each other alone, and tokens of noise are all alike.
"""

from typing import Any

from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from services.tiny.train.scenes import SIDE
from services.tiny.train.stories import WORDS
from services.tiny.train.story_codec import CELL, LATENTS, story_codec
from services.tiny.vocabulary import story_tokenizer
from services.tiny.workbench import workbench

WIDTH = 64  # of a token's embedding, which the transformer attends to
HEADS, HEAD = 8, 44
CELLS = SIDE // CELL


@workbench()
def untrained() -> Any:
    """Return the pipeline with random weights.

    What is predicted is the film and not the noise, which would not get through: a token has more numbers than the
    transformer is wide.
    """
    tokenizer = story_tokenizer(WORDS)
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=16,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            feed_forward_proj="gated-gelu",
        )
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, CELLS, CELLS),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        in_channels=LATENTS + 1,
        out_channels=LATENTS + 1,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=640,
        num_layers=3,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="sample", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=story_codec(),
        scheduler=scheduler,
        transformer=transformer,
    )
