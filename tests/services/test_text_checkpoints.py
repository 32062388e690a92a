"""Models of other kinds than ours: each writes what the library's own `generate` writes, or says that it cannot."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from services.errors import ModelUnavailable
from services.registry import load_models
from services.schema import complete
from services.settings import Settings
from services.text.engine import TextStepper, as_list
from services.text.schema import CompletionJob, CompletionRequest
from tests.services.stepping import Arrival, Recorder, alone, run

MODEL = next(model for model in load_models() if model.id == "tinyllama-1.1b-chat")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "jamba": {"num_experts": 2, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1,
              "use_mamba_kernels": False},
    "gpt2": {},
    "llama": {},
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
}
LONG = "the quick brown fox jumps over " * 12


def checkpoint(data_dir: Path, folder: Path, kind: str, **more: Any) -> Path:
    """Write a random model of the kind, with our tokenizer, where the worker looks for its own."""
    place = folder / "tiny" / "text"
    shutil.copytree(data_dir / "tiny" / "text", place)
    for weights in place.glob("*.safetensors"):
        weights.unlink()
    tokenizer = AutoTokenizer.from_pretrained(place)
    named = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **named, "eos_token_id": None, **more})
    AutoModelForCausalLM.from_config(config).float().save_pretrained(place)
    (place / "generation_config.json").write_text(json.dumps({}))
    return folder


def completion(prompt: str, **fields: Any) -> CompletionJob:
    asked = CompletionRequest(prompt=prompt, **{"max_tokens": 20, "temperature": 0, **fields})
    return complete(CompletionJob, asked, {"model": MODEL.id, **MODEL.defaults_in("tiny")})


def text_of(made: Recorder) -> str:
    return "".join(piece.text for piece in made.outputs)


def generated(folder: Path, prompt: str) -> str:
    """The library's own greedy text."""
    place = folder / "tiny" / "text"
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokens = tokenizer(prompt)["input_ids"]
    network: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    made = network.generate(torch.tensor([tokens]), max_new_tokens=20, max_length=None, do_sample=False)
    written = made[0, len(tokens) :].tolist()
    if written[-1] in as_list(network.generation_config.eos_token_id):
        written.pop()
    return str(tokenizer.decode(written, skip_special_tokens=True))


@pytest.mark.parametrize("packing", ["none", "float16"])
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "jamba"])
def test_models_that_remember_in_their_own_way_write_what_generate_writes(
    data_dir: Path, tmp_path: Path, kind: str, packing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder = checkpoint(data_dir, tmp_path, kind)
    made = TextStepper(MODEL, Settings(data_dir=folder, dtype="float32", text_packing=packing))
    both, _ = run(made, [Arrival(completion("hi")), Arrival(completion(LONG))])

    assert "sequences run one at a time" in caplog.text
    assert [text_of(one) for one in both] == [generated(folder, prompt) for prompt in ("hi", LONG)]


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gpt2", "a GPT2LMHeadModel has no layers that can be kept in {}$"),
        ("jamba", "a JambaForCausalLM cannot be kept in {}: the trial failed"),
    ],
)
def test_a_model_that_cannot_be_kept_in_fewer_bits_says_so(
    data_dir: Path, tmp_path: Path, bits: Any, kind: str, reason: str
) -> None:
    model = MODEL.model_copy(update={"quantisation": bits})

    with pytest.raises(ModelUnavailable, match=reason.format(bits)):
        TextStepper(model, Settings(data_dir=checkpoint(data_dir, tmp_path, kind)))


RULES: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1},
    {"repetition_penalty": 1.7},
    {"bad_words_ids": [[30], [40, 41]], "suppress_tokens": list(range(50, 200))},
    {"sequence_bias": [[[60], 9.0], [[61, 62], 5.0]]},
    {"eos_token_id": list(range(3, 200)), "min_new_tokens": 7},
    {"eos_token_id": list(range(3, 200)), "min_length": 9, "begin_suppress_tokens": [210, 211]},
    {"eos_token_id": 70, "exponential_decay_length_penalty": [3, 1.8]},
    {"eos_token_id": 2, "forced_eos_token_id": 2, "no_repeat_ngram_size": 1, "repetition_penalty": 0.7},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: next(reversed(rules)))
def test_what_a_checkpoints_makers_set_is_kept_to_as_by_generate(
    data_dir: Path, tmp_path: Path, rules: dict[str, Any]
) -> None:
    folder = checkpoint(data_dir, tmp_path, "llama")
    prompts = "hi hi hi", LONG
    plain = [generated(folder, prompt) for prompt in prompts]
    (folder / "tiny" / "text" / "generation_config.json").write_text(json.dumps(rules))
    made = TextStepper(MODEL, Settings(data_dir=folder, text_packing="none"))
    both, _ = run(made, [Arrival(completion(prompt), tick=2 * number) for number, prompt in enumerate(prompts)])

    assert [text_of(one) for one in both] == [generated(folder, prompt) for prompt in prompts] != plain


def test_what_is_not_served_of_what_they_set_is_logged(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint(data_dir, tmp_path, "llama")
    rules = {"num_beams": 4, "min_p": 0.1, "typical_p": 1.0, "temperature": 0.6, "top_k": 20}
    (folder / "tiny" / "text" / "generation_config.json").write_text(json.dumps(rules))
    TextStepper(MODEL, Settings(data_dir=folder, text_packing="none"))

    assert "generation_config.json: num_beams, min_p: not served" in caplog.text


def test_where_positions_depend_on_the_longest_nobody_has_company(data_dir: Path, tmp_path: Path) -> None:
    folder = checkpoint(data_dir, tmp_path, "llama", rope_parameters=LONGROPE)
    made = TextStepper(MODEL, Settings(data_dir=folder, text_packing="none"))
    (beside, _), _ = run(made, [Arrival(completion("hi")), Arrival(completion(LONG))])

    assert text_of(beside) == text_of(alone(made, completion("hi"))) == generated(folder, "hi")


def test_a_model_that_forgets_between_tokens_is_not_served(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.text.network.OWN_NAMES", ())
    folder = checkpoint(data_dir, tmp_path, "mamba")

    with pytest.raises(ModelUnavailable, match="MambaForCausalLM cannot be run token by token"):
        TextStepper(MODEL, Settings(data_dir=folder, text_packing="none"))
