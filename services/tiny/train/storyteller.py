"""A Wan of 64 pixels, before it is trained: one token for each latent frame, so that it knows places by its own inputs.

Between tokens a Wan knows places by how far they are from each other alone, and tokens of noise are all alike.
"""

from typing import Any

from diffusers import WanPipeline, WanTransformer3DModel

from services.tiny.text_video import scheduler, text_encoder
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
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder(tokenizer, WIDTH),
        vae=story_codec(),
        scheduler=scheduler(prediction_type="sample"),
        transformer=transformer,
    )
