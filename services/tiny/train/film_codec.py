"""The codec of the Stable Video Diffusion of 64 pixels, before it is trained: `codec.py`'s colours and edges, of films.

Its normalisations have 32 groups, whatever is asked for. Of 96 channels each has three: a number x, its negative, and
a constant by which all three are divided. Of fewer, what a flat picture's channels hold is divided away.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import TemporalResnetBlock
from torch import nn

from services.tiny.train.codec import EDGES, LATENTS, QUIET, clear, keep, pass_on

WIDTH = 96
ANCHOR = 6.0  # the constant: larger than a colour's numbers, which are within -1 and 1
SCALE = (2 * (ANCHOR**2 / 3 + 0.5) / 3) ** 0.5  # what the three are divided by, of a picture of middling contrast
COLOURS = 3


@torch.no_grad()
def film_codec() -> Any:
    """Return one whose latents are each cell's mean colour and edges; each frame is a mosaic by itself."""
    vae: Any = AutoencoderKLTemporalDecoder(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENTS,
        block_out_channels=(WIDTH, 64, 64, WIDTH),  # four blocks: 8 pixels a latent
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        sample_size=64,
        scaling_factor=1.0,
    )
    for block in vae.modules():
        pass_on(block)
        if isinstance(block, TemporalResnetBlock):
            clear(block.conv2, block.out_channels)
        elif isinstance(block, Attention):
            clear(block.to_out[0], WIDTH)
    keep(vae.quant_conv)
    vae.quant_conv.bias[LATENTS:] = QUIET
    nn.init.dirac_(vae.decoder.time_conv_out.weight)
    nn.init.zeros_(vae.decoder.time_conv_out.bias)
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        _take_colours(conv)
    _find_edges(vae.encoder.down_blocks[2].downsamplers[0].conv)
    _answer(vae.encoder, COLOURS + len(EDGES))
    _answer(vae.decoder, COLOURS)
    return vae


def cell_numbers() -> torch.Tensor:
    """Return the kernel, (numbers, 3, 2, 2), that finds colour and edges in the mean colours of a cell's quarters."""
    colours = torch.eye(COLOURS)[:, :, None, None].expand(-1, -1, 2, 2) / 4
    edges = [torch.tensor(parts)[:, None, None] * torch.tensor(quarters).float() for parts, quarters in EDGES]
    return torch.cat([colours, torch.stack(edges)])


def threefold(numbers: torch.Tensor) -> torch.Tensor:
    """Put each number's negative and the constant beside it, as the normalisations need them."""
    return torch.stack([numbers, -numbers, torch.full_like(numbers, ANCHOR)], dim=2).flatten(1, 2)


def _take_colours(conv: Any) -> None:
    """Let the first channels be the colours, each in three, and those of the edges nothing as yet."""
    clear(conv, 3 * (COLOURS + len(EDGES)))
    for colour in range(COLOURS):
        conv.weight[3 * colour, colour, 1, 1], conv.weight[3 * colour + 1, colour, 1, 1] = 1, -1
    conv.bias[2 : 3 * (COLOURS + len(EDGES)) : 3] = ANCHOR


def _find_edges(conv: nn.Conv2d) -> None:
    """Tell how the four quarters of a cell differ, where they become one."""
    for number, kernel in enumerate(cell_numbers()[COLOURS:], start=COLOURS):
        conv.weight[3 * number : 3 * number + 2] = 0
        conv.weight[3 * number, : 3 * COLOURS : 3, :2, :2] = kernel
        conv.weight[3 * number + 1] = -conv.weight[3 * number]


def _answer(network: Any, num: int) -> None:
    """Let the outputs be the first numbers, times what they were divided by; silu(x) - silu(-x) = x."""
    conv, norm = network.conv_out, network.conv_norm_out
    clear(conv, num)
    for number in range(num):
        norm.bias[3 * number : 3 * number + 2] = ANCHOR / 3 / SCALE
        conv.weight[number, 3 * number, 1, 1], conv.weight[number, 3 * number + 1, 1, 1] = SCALE, -SCALE
