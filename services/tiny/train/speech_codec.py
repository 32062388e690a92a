"""The codec of the tiny Bark: an EnCodec that is written down, with codebooks of what letters sound like.

A frame holds whole periods, so that few waves make all frames. The encoder lays a frame's samples side by side and
measures how much of each wave is in them; the decoder adds those up and lays the samples out again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecLSTM, EncodecResnetBlock

from services.tiny.audio import NUM_COARSE_BOOKS
from services.tiny.train.letters import FRAME, FRAME_RATE, LETTERS, SAMPLE_RATE, VOICES, chord

NUM_CODES = 128  # of each codebook
BITS = 7  # of a code
NUM_BOOKS = 6  # with five, sounds are 36 dB above what is wrong with them; of the sixth on, nothing is left to hold
RATIOS = (8, 5, 4, 2)  # a frame's samples are so many times so many
WAVES = 64  # that all frames are made of
SHIFT = 1.0  # is added to samples before each ELU, which leaves what is positive as it is
NUM_ROUNDS = 30  # of what finds a codebook
Taps = Mapping[tuple[int, int, int], float]  # weights by the numbers of output, input and step


def configuration() -> EncodecConfig:
    """Return what is to be built; the LSTMs cannot be left out, and do nothing."""
    rate = BITS * FRAME_RATE / 1000  # kbit/s of a codebook
    return EncodecConfig(
        num_filters=8,
        hidden_size=WAVES,
        codebook_size=NUM_CODES,
        codebook_dim=WAVES,
        num_lstm_layers=1,
        sampling_rate=SAMPLE_RATE,
        upsampling_ratios=list(RATIOS),
        target_bandwidths=[NUM_COARSE_BOOKS * rate, NUM_BOOKS * rate],
    )


@torch.no_grad()
def write_down(codec: Any) -> None:
    """Let the codec pass on what letters sound like; its codebooks are still empty."""
    for part in codec.modules():
        if isinstance(part, EncodecLSTM):
            for weight in part.parameters():
                weight.zero_()
        elif isinstance(part, EncodecResnetBlock):
            _pass_on(part)
    waves, reach = _waves()
    _write_encoder(codec.encoder.layers, waves, reach)
    _write_decoder(codec.decoder.layers, waves, reach)


@torch.no_grad()
def fill_codebooks(codec: Any) -> None:
    """Let each codebook hold what those before it leave of all frames that there are."""
    latents = codec.encoder(torch.cat([_chords(), torch.zeros(FRAME)])[None, None])[0].T
    left = latents.mul(1000).round().unique(dim=0) / 1000
    for layer in codec.quantizer.layers:
        layer.codebook.embed.copy_(_middles(left))
        left = left - layer.codebook.decode(layer.codebook.encode(left))


def _pass_on(block: Any) -> None:
    """Let a block change nothing."""
    channels = range(block.shortcut.conv.in_channels)
    _set(block.shortcut.conv, {(n, n, 0): 1.0 for n in channels})
    _set(block.block[-1].conv, {(n, 0, 0): 0.0 for n in channels})


def _waves() -> tuple[torch.Tensor, torch.Tensor]:
    """Find an orthonormal row of waves that all frames are sums of, (WAVES, FRAME), and how much there is of each."""
    frames = _chords().view(-1, FRAME)
    waves = torch.linalg.svd(frames, full_matrices=False).Vh[:WAVES]
    return waves, 1.2 * (frames @ waves.T).abs().amax(0) + 0.1


def _chords() -> torch.Tensor:
    return torch.tensor(np.concatenate([chord(letter, voice) for voice in VOICES for letter in LETTERS])).float()


def _write_encoder(layers: Any, waves: torch.Tensor, reach: torch.Tensor) -> None:
    """Lay the samples of a frame side by side, and in the last step measure the waves."""
    first, *steps, measure, last = (layer.conv for layer in layers if hasattr(layer, "conv"))
    _set(first, {(0, 0, first.kernel_size[0] - 1): 1.0}, {0: SHIFT})
    held = 1  # samples side by side
    for conv in steps:
        stride = conv.stride[0]
        _set(conv, {(held * step + n, n, stride + step): 1.0 for step in range(stride) for n in range(held)})
        held *= stride
    stride = measure.stride[0]
    parts = {
        (wave, n, stride + step): waves[wave, held * step + n].item()
        for wave in range(WAVES)
        for step in range(stride)
        for n in range(held)
    }
    _set(measure, parts, dict(enumerate((reach - SHIFT * waves.sum(1)).tolist())))
    _set(last, {(n, n, last.kernel_size[0] - 1): 1.0 for n in range(WAVES)}, dict(enumerate((-reach).tolist())))


def _write_decoder(layers: Any, waves: torch.Tensor, reach: torch.Tensor) -> None:
    """Add up the waves, and lay the samples of a frame out one after the other."""
    first, add, *steps, last = (layer.conv for layer in layers if hasattr(layer, "conv"))
    now = first.kernel_size[0] - 1
    one = {(WAVES, 0, now): 0.0}  # a channel that is one, of which the others' reach is taken back
    biases = dict(enumerate(reach.tolist())) | {WAVES: 1.0}
    _set(first, {(n, n, now): 1.0 for n in range(WAVES)} | one, biases)
    parts = torch.cat([waves, SHIFT - reach[None] @ waves])
    held = FRAME // add.stride[0]
    _set(
        add,
        {(n % held, wave, n // held): part for wave, row in enumerate(parts.tolist()) for n, part in enumerate(row)},
    )
    for conv in steps:
        stride = conv.stride[0]
        held //= stride
        _set(conv, {(n, held * step + n, step): 1.0 for step in range(stride) for n in range(held)})
    _set(last, {(0, 0, last.kernel_size[0] - 1): 1.0}, {0: -SHIFT})


def _set(conv: Any, taps: Taps, biases: Mapping[int, float] | None = None) -> None:
    """Let the outputs that have taps take nothing else; others are of everything by chance."""
    weight = conv.weight.clone()
    outputs = weight.transpose(0, 1) if isinstance(conv, nn.ConvTranspose1d) else weight
    written = sorted({output for output, _, _ in taps})
    outputs[written], conv.bias[written] = 0, 0
    for place, value in taps.items():
        outputs[place] = value
    for output, value in (biases or {}).items():
        conv.bias[output] = value
    norms, directions = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    norms.copy_(weight.flatten(1).norm(dim=1).view_as(norms))
    directions.copy_(torch.where(norms > 0, weight, directions))  # nothing has no direction


def _middles(points: torch.Tensor) -> torch.Tensor:
    """Return NUM_CODES points, each in the middle of those that are nearest to it: (NUM_CODES, WAVES)."""
    middles = points[:1]
    while len(middles) < NUM_CODES:  # far from each other, as k-means++ has it
        apart = torch.cdist(points, middles).amin(1).square()
        middles = torch.cat([middles, points[torch.multinomial(apart + 1e-9, 1)]])
    for _ in range(NUM_ROUNDS):
        nearest = torch.cdist(points, middles).argmin(1)
        for number in nearest.unique():
            middles[number] = points[nearest == number].mean(0)
    return middles
