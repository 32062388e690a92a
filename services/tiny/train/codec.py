"""The codec of the Stable Diffusion of 64 pixels, before it is trained: what it begins with are colours and edges.

From random weights it takes hundreds of steps until the colours come back at all, and thousands until small shapes do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

LATENTS = 8  # of a cell of 8 pixels: its mean colour's three, and one for each of EDGES
QUIET = -6.0  # the logarithm of the variance of what is encoded, at first
ANCHOR = 3.0  # larger than a colour's numbers, which are within -1 and 1
ACROSS, DOWN, ASKEW = ((-1, 1), (-1, 1)), ((-1, -1), (1, 1)), ((1, -1), (-1, 1))  # how the quarters of a cell differ
BRIGHT, WARM = (0.33, 0.33, 0.33), (0.5, 0.0, -0.5)  # parts of red, green and blue
EDGES = ((BRIGHT, ACROSS), (BRIGHT, DOWN), (WARM, ACROSS), (WARM, DOWN), (BRIGHT, ASKEW))
RED, GREEN, BLUE, ONE, FIRST_EDGE = 0, 2, 4, 6, 8  # channels of what is positive; their negatives are next to them


@torch.no_grad()
def codec() -> Any:
    """Return one whose latents are each cell's mean colour and edges, and whose picture is a mosaic of the colours.

    All else that the networks hold is a correction that is nothing as yet. A number x is kept as x and -x, as
    silu(x) - silu(-x) = x, and beside a constant, so that the normalisations divide by about the same everywhere.
    """
    vae: Any = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENTS,
        block_out_channels=(8, 16, 32, 64),  # four blocks: 8 pixels a latent
        norm_num_groups=1,  # with more, a channel or two in each, the colour of the whole is normalised away
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    for block in vae.modules():
        pass_on(block)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        keep(conv)
    vae.quant_conv.bias[LATENTS:] = QUIET
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        _take_colours(conv)
    _find_edges(vae.encoder.down_blocks[2].downsamplers[0].conv)
    _answer(vae.encoder.conv_out, (RED, GREEN, BLUE, *range(FIRST_EDGE, FIRST_EDGE + 2 * len(EDGES), 2)))
    _answer(vae.decoder.conv_out, (RED, GREEN, BLUE))
    return vae


def pass_on(block: Any) -> None:
    """Let a block change nothing but the resolution."""
    if isinstance(block, ResnetBlock2D):
        clear(block.conv2, block.out_channels)
        if block.conv_shortcut is not None:
            keep(block.conv_shortcut)
    elif isinstance(block, Upsample2D | Downsample2D):
        keep(block.conv)
    if isinstance(block, Downsample2D):
        block.conv.weight[:, :, :2, :2] = block.conv.weight[:, :, 1:2, 1:2] / 4


def keep(conv: Any) -> None:
    """Let a convolution change nothing."""
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)


def _take_colours(conv: Any) -> None:
    """Let the first channels be the colour and the constant; the others are of everything by chance."""
    clear(conv, 8)
    for colour, channel in enumerate((RED, GREEN, BLUE)):
        conv.weight[channel, colour, 1, 1], conv.weight[channel + 1, colour, 1, 1] = 1, -1
    conv.bias[ONE], conv.bias[ONE + 1] = ANCHOR, -ANCHOR


def _find_edges(conv: nn.Conv2d) -> None:
    """Tell how the four quarters of a cell differ, where they become one."""
    for number, (parts, quarters) in enumerate(EDGES):
        channel = FIRST_EDGE + 2 * number
        conv.weight[channel : channel + 2] = 0
        for part, colour in zip(parts, (RED, GREEN, BLUE), strict=True):
            conv.weight[channel, colour, :2, :2] = part * torch.tensor(quarters, dtype=torch.float32)
        conv.weight[channel + 1] = -conv.weight[channel]


def _answer(conv: nn.Conv2d, channels: Sequence[int]) -> None:
    """Let the first outputs be these channels' numbers, times what they were divided by."""
    clear(conv, len(channels))
    scale = (2 * (ANCHOR**2 + 1.5) / conv.in_channels) ** 0.5
    for number, channel in enumerate(channels):
        conv.weight[number, channel, 1, 1], conv.weight[number, channel + 1, 1, 1] = scale, -scale


def clear(conv: Any, num: int) -> None:
    """Let the first channels be nothing."""
    conv.weight[:num] = 0
    conv.bias[:num] = 0
