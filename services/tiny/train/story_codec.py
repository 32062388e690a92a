"""The codec of the Wan of 64 pixels: all of it is written down, and nothing is left to learn.

Of a cell of four pixels and two frames it keeps the mean colour, and how the second frame differs from the first: six
numbers; a seventh, which is nothing here, has room for what films to note how late it is. It decodes by drawing lines
between the middles of cells. Beyond the picture's edge the library's convolutions see nothing: so lines are drawn of
how a cell differs from the mean of all, which is little at the edge, and the mean is added again.

The networks divide by the length of all channels, and bend what is negative. So there is a constant beside the numbers
that is much larger, and each number x is kept as x and -x: silu(x) - silu(-x) = x.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn

COLOURS = 3
LATENTS = 2 * COLOURS  # of both frames' mean, and of how they differ
CHANGE = COLOURS  # the number of the first that says how they differ
CLOCK = LATENTS  # the number of a latent that says how late it is
CELL = 4  # pixels
PIXELS = 2  # of a quarter of a cell, which is what the networks see at once
QUIET = -6.0  # the logarithm of the variance of what is encoded
LENGTH = 256.0  # of the constant
BOTH = 2 * COLOURS  # channels of a frame's colours, each with its negative
LINES = ((0.375, 0.5, 0.125), (0.125, 0.5, 0.375))  # parts of the quarters before, here and after, of each pixel
HALF = 2 * BOTH + 1  # the decoder's channels of a frame: how it differs from the mean, the mean, and the constant


@torch.no_grad()
def story_codec() -> Any:
    """Return it."""
    vae: Any = AutoencoderKLWan(
        base_dim=2 * LATENTS + 1,
        decoder_base_dim=2 * HALF,
        z_dim=LATENTS + 1,
        dim_mult=[1, 1],
        num_res_blocks=0,
        temperal_downsample=[True],
        latents_mean=[0.0] * (LATENTS + 1),
        latents_std=[1.0] * (LATENTS + 1),
        in_channels=COLOURS * PIXELS**2,
        out_channels=COLOURS * PIXELS**2,
        patch_size=PIXELS,
        scale_factor_temporal=2,
        scale_factor_spatial=CELL,
    )
    for name, weight in vae.named_parameters():
        if not name.endswith("gamma"):
            weight.zero_()
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
    vae.quant_conv.bias[LATENTS + 1 :] = QUIET
    _write_encoder(vae.encoder)
    _write_decoder(vae.decoder)
    return vae


def encoded(films: torch.Tensor) -> torch.Tensor:
    """Return what the encoder makes of films, (films, 3, 1 + 2n, height, width) in [-1, 1]: (films, 7, 1 + n, ...).

    It takes a hundredth of the time.
    """
    cells = nn.functional.avg_pool3d(films, (1, CELL, CELL))
    first, second = (torch.cat([cells[:, :, :1], cells[:, :, start::2]], dim=2) for start in (1, 2))
    return nn.functional.pad(torch.cat([(first + second) / 2, second - first], dim=1), (0, 0) * 3 + (0, 1))


def _write_encoder(encoder: Any) -> None:
    """Average the pixels of quarters and then the quarters, and compare two frames."""
    halving, constant = encoder.down_blocks[0], 2 * LATENTS
    for conv in (encoder.conv_in, halving.resample[1], halving.time_conv):
        conv.bias[constant] = LENGTH
    for colour in range(COLOURS):
        _write(encoder.conv_in.weight[:, _pixels(colour), 2, 1, 1], colour, PIXELS**-2)
        _write(halving.resample[1].weight[:, 2 * colour, :2, :2], colour, 1 / 4)
        joined = halving.time_conv.weight[:, 2 * colour, :, 0, 0]  # of the frame before, the first and the second
        _write(joined[:, 1:], colour, 1 / 2)
        _write(joined[:, 1], COLOURS + colour, -1)
        _write(joined[:, 2], COLOURS + colour, 1)
    for number in range(LATENTS):
        _read(encoder.conv_out.weight[number, :, 2, 1, 1], number)
    _undivide(encoder.norm_out)


def _write_decoder(decoder: Any) -> None:
    """Take the mean of all cells away, take the frames apart, draw lines, and add the mean."""
    widening, last = decoder.up_blocks[0].upsamplers[0], decoder.up_blocks[1].resnets[0]
    for frame, part in ((0, -1 / 2), (1, 1 / 2)):
        taken = decoder.conv_in.weight[frame * HALF :, :, 2, 1, 1]
        for colour in range(COLOURS):
            _write(taken[:, colour], colour, 1)
            _write(taken[:, COLOURS + colour], colour, part)
    decoder.conv_in.bias[BOTH * 2] = LENGTH
    attention = decoder.mid_block.attentions[0]  # to all cells alike
    _undivide(attention.norm)
    for start in (0, HALF):
        for channel in range(start, start + BOTH):
            attention.to_qkv.weight[2 * 2 * HALF + channel, channel] = 1
            attention.proj.weight[channel, channel], attention.proj.weight[channel + BOTH, channel] = -1, 1
    for frame in (0, 1):
        apart = widening.time_conv.weight[frame * 2 * HALF :, :, 2, 0, 0]
        apart[: HALF - 1] = torch.eye(2 * HALF)[frame * HALF :][: HALF - 1]
        apart[HALF - 1, BOTH * 2] = 1
    for conv in (widening.resample[1], last.conv_shortcut):
        nn.init.dirac_(conv.weight)
    _undivide(decoder.norm_out)
    lines = torch.tensor(LINES)
    for colour in range(COLOURS):
        for column, across in enumerate(lines):
            for row, down in enumerate(lines):
                pixel = decoder.conv_out.weight[_pixels(colour)][column * PIXELS + row, :, 2]
                _read(pixel, colour, down[:, None] * across)
                _read(pixel[BOTH:, 1, 1], colour)


def _undivide(norm: Any) -> None:
    """Let it multiply by what it divides by: the constant's length."""
    norm.gamma.fill_(LENGTH * len(norm.gamma) ** -0.5)


def _pixels(colour: int) -> slice:
    """The channels that have this colour of a quarter's pixels."""
    return slice(colour * PIXELS**2, (colour + 1) * PIXELS**2)


def _write(weight: torch.Tensor, number: int, part: float) -> None:
    """Let what comes in be this number, and its negative beside it."""
    weight[2 * number], weight[2 * number + 1] = part, -part


def _read(weight: torch.Tensor, number: int, part: Any = 1.0) -> None:
    """Return this part of a number."""
    weight[2 * number], weight[2 * number + 1] = part, -part
