"""The Bark that says letters, before its token models are trained; the codec is whole.

Its rates are such that a letter is two semantic tokens and six frames. What its windows show is short, ten letters, and
so is the time that it takes to train.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BarkConfig, BarkModel, GenerationConfig

from services.audio.sentences import LONGEST
from services.tiny.audio import NUM_COARSE_BOOKS
from services.tiny.train.letters import END, FRAME_RATE, GAP, LETTERS, NUM_FRAMES, SAMPLE_RATE, VOICES, say
from services.tiny.train.speech_codec import NUM_BOOKS, NUM_CODES, configuration, fill_codebooks, write_down
from services.tiny.vocabulary import letter_tokenizer
from services.tiny.workbench import workbench

SIGNS = LETTERS + GAP + END  # what is said, in the order of the semantic tokens
PARTS = 2  # semantic tokens of a sign
NUM_SEMANTIC = PARTS * len(SIGNS)
SEMANTIC_RATE = FRAME_RATE * PARTS / NUM_FRAMES  # tokens a second
RATIO = NUM_COARSE_BOOKS * NUM_FRAMES // PARTS  # coarse tokens of a semantic one
MAX_TEXT = LONGEST  # tokens
MAX_SAID = PARTS * (MAX_TEXT + 1) + 1  # semantic tokens of a text, of its END and of what ends the stage
TEXT_OFFSET = NUM_SEMANTIC + 8
COARSE_PAD = NUM_SEMANTIC + NUM_COARSE_BOOKS * NUM_CODES
COARSE_INFER = COARSE_PAD + 2
SIGN_COARSE = PARTS * RATIO  # of a sign
MAX_COARSE_INPUT = 18  # semantic tokens that a window of the coarse stage sees
COARSE_HISTORY = 60  # coarse tokens before the new ones of a window
COARSE_WINDOW = 48  # new ones
MAX_COARSE = MAX_COARSE_INPUT + COARSE_HISTORY + COARSE_WINDOW  # places: what is made last is not read
FINE_INPUT = 64  # frames that the fine stage sees
FINE_HISTORY = 32  # of them, what was before
NUM_WAVES = 64  # of a place's numbers, say when it is heard
STRENGTH = 0.3  # of those, and of a token's other numbers
SHARPNESS = 3.0  # of what is looked for
PRESET = "the quick brown fox" + END  # what a voice said before it is first asked
Tokens = np.ndarray[Any, np.dtype[np.int64]]


class Speaker:
    """A Bark, its tokenizer, and what its voices said before."""

    def __init__(self) -> None:
        """Make them: the token models with random weights."""
        self.tokenizer = letter_tokenizer(LETTERS, MAX_TEXT)
        text_pad = TEXT_OFFSET + len(self.tokenizer)
        self.network = BarkModel(_config(text_pad))
        _align(self.network)
        codec: Any = self.network.codec_model
        write_down(codec)
        fill_codebooks(codec)
        self.network.generation_config = _generation_config(text_pad)

    def save_pretrained(self, folder: Path) -> None:
        """Write all into the folder."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        index: dict[str, Any] = {"repo_or_path": "."}  # the loader puts its own path here
        for voice in VOICES:
            prompts = self.history(PRESET, voice)
            index[voice] = {name: f"speaker_embeddings/{voice}_{name}.npy" for name in prompts}
            (folder / "speaker_embeddings").mkdir(exist_ok=True)
            for name, tokens in prompts.items():
                np.save(folder / index[voice][name], tokens)
        (folder / "speaker_embeddings_path.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def history(self, text: str, voice: str) -> Mapping[str, Tokens]:
        """Return what a voice said before, as Bark has it."""
        fine = self.codes(text, voice)
        return {"semantic_prompt": semantic(text), "coarse_prompt": fine[:NUM_COARSE_BOOKS], "fine_prompt": fine}

    @torch.no_grad()
    def codes(self, text: str, voice: str) -> Tokens:
        """Encode what a text sounds like: (books, frames)."""
        codec: Any = self.network.codec_model
        samples = torch.tensor(say(text, voice), dtype=torch.float32, device=codec.device)
        codes: Tokens = codec.quantizer.encode(codec.encoder(samples[None, None]))[:, 0].cpu().numpy()
        return codes


@workbench()
def untrained() -> Speaker:
    """Return a Bark that babbles in sounds of letters."""
    return Speaker()


def semantic(text: str) -> Tokens:
    """Return the semantic tokens of a text of SIGNS: each sign's first part and its second."""
    return np.array([PARTS * SIGNS.index(sign) + part for sign in text for part in range(PARTS)])


@torch.no_grad()
def _align(network: Any) -> None:
    """Let places begin as waves of when they are heard: what is to be said is then found where it is written."""
    semantic, coarse = network.semantic, network.coarse_acoustics
    said = torch.arange(MAX_SAID)
    _place(semantic, torch.cat([torch.arange(MAX_TEXT), said // PARTS]), 1 + said % PARTS)
    _look(semantic.layers[0].attn)
    sounds = torch.arange(MAX_COARSE - MAX_COARSE_INPUT)
    _place(coarse, torch.cat([torch.arange(MAX_COARSE_INPUT), sounds / RATIO]), 1 + sounds % SIGN_COARSE)
    nn.init.zeros_(network.fine_acoustics.position_embeds_layer.weight)  # it matters little where a frame is


def _place(stage: Any, times: torch.Tensor, kinds: torch.Tensor) -> None:
    """Give each place a wave of its time and a mark of its kind: of those that are not read, the last ones."""
    places, tokens = stage.position_embeds_layer.weight, stage.input_embeds_layer.weight
    slopes = 2 * torch.pi * torch.logspace(math.log10(1 / 4), math.log10(1 / 400), NUM_WAVES // 2)
    angles = times[:, None] * slopes
    marks = nn.functional.one_hot(nn.functional.pad(kinds, (len(times) - len(kinds), 0)), places.shape[1] - NUM_WAVES)
    places.copy_(torch.cat([angles.sin(), angles.cos(), 3 * marks], dim=1) * STRENGTH)
    nn.init.normal_(tokens, std=STRENGTH)
    tokens[:, :NUM_WAVES] = 0


def _look(attention: Any) -> None:
    """Let each head compare a part of the places' waves."""
    width, size = attention.embed_dim, attention.head_dim
    for head in range(attention.num_heads):
        for number, wave in enumerate(range(head, NUM_WAVES, attention.num_heads)):
            for row in (head * size + number, width + head * size + number):  # of the query, and of the key
                attention.att_proj.weight[row] = SHARPNESS * nn.functional.one_hot(torch.tensor(wave), width)


def _config(text_pad: int) -> BarkConfig:
    stage: dict[str, Any] = {"num_heads": 4, "bias": False}
    text = {"input_vocab_size": text_pad + 5, "output_vocab_size": NUM_SEMANTIC + 1}
    coarse = {"input_vocab_size": COARSE_PAD + 3, "output_vocab_size": COARSE_PAD + 3}
    fine = {"input_vocab_size": NUM_CODES + 1, "output_vocab_size": NUM_CODES + 1}
    return BarkConfig(
        semantic_config=stage | text | {"num_layers": 1, "hidden_size": 96, "block_size": MAX_TEXT + MAX_SAID},
        coarse_acoustics_config=stage | coarse | {"num_layers": 3, "hidden_size": 96, "block_size": MAX_COARSE},
        fine_acoustics_config=stage
        | fine
        | {"num_layers": 2, "hidden_size": 64, "block_size": FINE_INPUT}
        | {"n_codes_total": NUM_BOOKS, "n_codes_given": 1},
        codec_config=configuration().to_dict(),
    )


def _generation_config(text_pad: int) -> GenerationConfig:
    """Return the three stages' defaults as Bark reads them: plain dictionaries (its own class cannot be saved)."""
    text = {
        "do_sample": True,
        "temperature": 0.5,
        "max_new_tokens": MAX_SAID,
        "eos_token_id": NUM_SEMANTIC,
        "pad_token_id": NUM_SEMANTIC,
        "semantic_vocab_size": NUM_SEMANTIC,
        "semantic_rate_hz": SEMANTIC_RATE,
        "text_encoding_offset": TEXT_OFFSET,
        "text_pad_token": text_pad,
        "semantic_infer_token": text_pad + 4,
        "max_input_semantic_length": MAX_TEXT,
    }
    coarse = {
        "do_sample": True,
        "temperature": 0.5,
        "coarse_semantic_pad_token": COARSE_PAD,
        "coarse_infer_token": COARSE_INFER,
        "coarse_rate_hz": FRAME_RATE,
        "n_coarse_codebooks": NUM_COARSE_BOOKS,
        "max_coarse_input_length": MAX_COARSE_INPUT,
        "max_coarse_history": COARSE_HISTORY,
        "sliding_window_len": COARSE_WINDOW,
    }
    fine = {
        "temperature": 0.5,
        "max_fine_history_length": FINE_HISTORY,
        "max_fine_input_length": FINE_INPUT,
        "n_fine_codebooks": NUM_BOOKS,
    }
    return GenerationConfig(
        semantic_config=text,
        coarse_acoustics_config=coarse,
        fine_acoustics_config=fine,
        sample_rate=SAMPLE_RATE,
        codebook_size=NUM_CODES,
    )
