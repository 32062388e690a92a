"""A Bark of one layer a stage with four voices; what it says is babble of 0.4 to 1.2 seconds a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BarkConfig, BarkModel, EncodecModel, GenerationConfig

from services.tiny.vocabulary import MAX_SPEECH, speech_tokenizer
from services.tiny.workbench import workbench

VOICES = ("v2/en_speaker_0", "v2/en_speaker_1", "v2/de_speaker_0", "v2/de_speaker_1")
SAMPLE_RATE = 24_000
SEMANTIC_RATE = 49.9  # tokens a second
COARSE_RATE = 75  # frames a second
VOICE_LENGTH = 40  # semantic tokens

NUM_SEMANTIC = 100
NUM_CODES = 16  # of each codebook: 4 bits, so that 8 codebooks at 75 Hz are 2.4 kbit/s
NUM_COARSE_BOOKS = 2
NUM_BOOKS = 8
ATTENTION = 3.0  # times the weights as drawn
LOUDNESS = 1.45  # times the gain of each convolution: the sound peaks at about 0.5

TEXT_OFFSET = NUM_SEMANTIC + 48  # the semantic stage counts text tokens from here
COARSE_PAD = NUM_SEMANTIC + NUM_COARSE_BOOKS * NUM_CODES

COARSE_DEFAULTS = {
    "do_sample": True,
    "temperature": 0.7,
    "coarse_semantic_pad_token": COARSE_PAD,
    "coarse_infer_token": COARSE_PAD + 2,
    "coarse_rate_hz": COARSE_RATE,
    "n_coarse_codebooks": NUM_COARSE_BOOKS,
    "max_coarse_input_length": 256,
    "max_coarse_history": 630,
    "sliding_window_len": 60,
}
FINE_DEFAULTS = {
    "temperature": 0.5,
    "max_fine_history_length": 512,
    "max_fine_input_length": 1024,
    "n_fine_codebooks": NUM_BOOKS,
}


@workbench()
def build(target: Path) -> None:
    """Write model, tokenizer, voices and generation defaults into the folder."""
    tokenizer = speech_tokenizer()
    text_pad = TEXT_OFFSET + len(tokenizer)
    model = BarkModel(_config(text_pad))
    _sharpen(model)
    _set_codec(model.codec_model)
    model.generation_config = _generation_config(text_pad)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _save_voices(target)


def _config(text_pad: int) -> BarkConfig:
    stage: dict[str, Any] = {
        "block_size": 1024,
        "num_layers": 1,
        "num_heads": 4,
        "hidden_size": 32,
        "bias": False,
        "initializer_range": 0.2,  # at the usual 0.02 all tokens are equally likely
    }
    coarse_vocab = {"input_vocab_size": COARSE_PAD + 3, "output_vocab_size": COARSE_PAD + 3}
    fine_vocab = {"input_vocab_size": NUM_CODES + 32, "output_vocab_size": NUM_CODES + 32}
    return BarkConfig(
        semantic_config=stage | {"input_vocab_size": text_pad + 5, "output_vocab_size": TEXT_OFFSET},
        coarse_acoustics_config=stage | coarse_vocab,
        fine_acoustics_config=stage | fine_vocab | {"n_codes_total": NUM_BOOKS, "n_codes_given": 1},
        codec_config={
            "model_type": "encodec",
            "num_filters": 4,
            "hidden_size": 16,
            "codebook_size": NUM_CODES,
            "codebook_dim": 16,
            "num_lstm_layers": 1,
            "sampling_rate": SAMPLE_RATE,
            "upsampling_ratios": [8, 5, 4, 2],
            "target_bandwidths": [1.2, 2.4],
        },
    )


@torch.no_grad()
def _sharpen(model: BarkModel) -> None:
    """Let attention choose: spread over hundreds of padding tokens, it would not notice the text nor the voice."""
    for stage in (model.semantic, model.coarse_acoustics):
        for name, parameter in stage.named_parameters():
            if name.endswith("att_proj.weight"):
                parameter.mul_(ATTENTION)


@torch.no_grad()
def _set_codec(codec: EncodecModel) -> None:
    """Let the codec sound: freshly initialised it turns any tokens into the same faint hum."""
    for name, buffer in codec.quantizer.named_buffers():
        if name.endswith("codebook.embed"):
            buffer.normal_()  # zeros so far, as training would fill them
    for name, parameter in codec.decoder.named_parameters():
        if name.endswith("conv.bias"):
            parameter.zero_()
        elif name.endswith("weight.original0"):  # the norm of the weights
            parameter.mul_(LOUDNESS)


def _generation_config(text_pad: int) -> GenerationConfig:
    """Return the three stages' defaults as Bark reads them: plain dictionaries (its own class cannot be saved)."""
    semantic = {
        "do_sample": True,
        "temperature": 0.7,
        "min_new_tokens": 20,  # untrained, it would end at random, and none at all makes the codec fail
        "max_new_tokens": 60,
        "eos_token_id": NUM_SEMANTIC,
        "pad_token_id": NUM_SEMANTIC,
        "semantic_vocab_size": NUM_SEMANTIC,
        "semantic_rate_hz": SEMANTIC_RATE,
        "text_encoding_offset": TEXT_OFFSET,
        "text_pad_token": text_pad,
        "semantic_infer_token": text_pad + 4,
        "max_input_semantic_length": MAX_SPEECH,
    }
    return GenerationConfig(
        semantic_config=semantic,
        coarse_acoustics_config=COARSE_DEFAULTS,
        fine_acoustics_config=FINE_DEFAULTS,
        sample_rate=SAMPLE_RATE,
        codebook_size=NUM_CODES,
    )


def _save_voices(target: Path) -> None:
    """Write each voice as the tokens of something it said before."""
    random = np.random.default_rng(0)
    index: dict[str, Any] = {"repo_or_path": "."}  # the loader puts its own path here
    for voice in VOICES:
        num_frames = int(VOICE_LENGTH / SEMANTIC_RATE * COARSE_RATE)
        fine = random.integers(NUM_CODES, size=(NUM_BOOKS, num_frames))
        prompts = {
            "semantic_prompt": random.integers(NUM_SEMANTIC, size=VOICE_LENGTH),
            "coarse_prompt": fine[:NUM_COARSE_BOOKS],
            "fine_prompt": fine,
        }
        index[voice] = {name: f"speaker_embeddings/{voice}_{name}.npy" for name in prompts}
        for name, tokens in prompts.items():
            path = target / index[voice][name]
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, tokens)
    (target / "speaker_embeddings_path.json").write_text(json.dumps(index, indent=2))
