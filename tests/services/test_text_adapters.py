"""Adapters of chat models: what weights with the adapter merged in would say, and everyone's own in a mixed batch."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from services.errors import ModelUnavailable
from services.registry import Model
from services.schema import complete
from services.settings import Settings
from services.text.adapters import CONFIG, WEIGHTS
from services.text.engine import Phase, TextStepper
from services.text.linear import is_supported
from services.text.rows import STRIDE
from services.text.schema import CompletionJob, CompletionRequest
from tests.services.stepping import Arrival, Recorder, alone, run
from tests.services.test_text_checkpoints import MODEL, SIZES

LAYERS = "base_model.model.model.layers"
PACKINGS = ["none", "float16", "int8", "int4"] if is_supported(torch.device("cpu")) else ["none"]
PROMPTS = ["Hello", "x", "the quick brown fox jumps " * 3, "a model " * 40]
Weights = dict[str, torch.Tensor]


def write(folder: Path, weights: Weights, **config: Any) -> Path:
    """Write an adapter as the library peft does."""
    folder.mkdir()
    described = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", **config}
    (folder / CONFIG).write_text(json.dumps(described), encoding="utf-8")
    save_file(weights, folder / WEIGHTS)
    return folder


def pair(layer: str, width: int, new_width: int, rank: int = 3) -> Weights:
    dice = torch.Generator().manual_seed(len(layer) + rank)
    return {
        f"{layer}.lora_A.weight": torch.randn(rank, width, generator=dice) * width**-0.5,
        f"{layer}.lora_B.weight": torch.randn(new_width, rank, generator=dice) * 0.5,
    }


OTHER = {
    **pair(f"{LAYERS}.0.self_attn.k_proj", 64, 32),
    **pair(f"{LAYERS}.1.self_attn.q_proj", 64, 64, rank=5),
    **pair(f"{LAYERS}.1.mlp.up_proj", 64, 176),
}
OTHER_CONFIG: Mapping[str, Any] = {"use_rslora": True, "alpha_pattern": {"self_attn.k_proj": 9}}


def adapted(folders: Mapping[str, Path], **scales: float) -> Model:
    """The model with adapters."""
    entries = [{"name": name, "scale": scales.get(name, 1), "folder": {"path": path}} for name, path in folders.items()]
    return Model.model_validate({**MODEL.model_dump(), "adapters": entries})


def loaded(settings: Settings, model: Model, packing: str) -> TextStepper:
    """Load it in one of the packings, by the entry where the settings have no such."""
    if packing == "int4":
        return TextStepper(model.model_copy(update={"quantisation": "int4"}), settings)
    return TextStepper(model, settings.model_copy(update={"text_packing": packing}))


def completion(prompt: str, adapter: str | None = None, **fields: Any) -> CompletionJob:
    asked = CompletionRequest(prompt=prompt, adapter=adapter, **{"max_tokens": 12, "temperature": 0, **fields})
    return complete(CompletionJob, asked, {"model": MODEL.id, **MODEL.defaults_in("tiny")})


def text_of(made: Recorder, index: int = 0) -> str:
    return "".join(piece.text for piece in made.outputs if piece.index == index)


@pytest.fixture(scope="session")
def folders(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    other = write(tmp_path_factory.mktemp("adapters") / "other", OTHER, **OTHER_CONFIG)
    return {"tiny": data_dir / "tiny" / "text_lora", "other": other}


@pytest.fixture(scope="module", params=PACKINGS)
def packing(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def stepper(worker_settings: Settings, folders: dict[str, Path], packing: str) -> TextStepper:
    return loaded(worker_settings, adapted(folders, other=-0.5), packing)


@pytest.fixture(scope="module")
def plain(worker_settings: Settings, folders: dict[str, Path]) -> TextStepper:
    return loaded(worker_settings, adapted(folders, other=-0.5), "none")


def merged(data_dir: Path, folder: Path, adapter: Path, scales: Mapping[str, float]) -> Path:
    """Write the model with an adapter's product added to its own weights; `scales` are by the end of a layer's name."""
    place = folder / "tiny" / "text"
    shutil.copytree(data_dir / "tiny" / "text", place)
    network: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    weights = load_file(adapter / WEIGHTS)
    for name in [name for name in weights if "lora_A" in name]:
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        scale = next(scale for end, scale in scales.items() if layer.endswith(end))
        product = weights[name.replace("lora_A", "lora_B")] @ weights[name]
        network.get_submodule(layer).weight.data += scale * product
    network.save_pretrained(place)
    return folder


SCALES: Mapping[str, Mapping[str, float]] = {
    "tiny": {"": 8 / 4},
    "other": {"k_proj": -0.5 * 9 / 3**0.5, "q_proj": -0.5 * 6 / 5**0.5, "up_proj": -0.5 * 6 / 3**0.5},
}


@pytest.mark.parametrize("adapter", SCALES)
def test_a_text_is_that_of_weights_with_the_adapter_in_them(
    plain: TextStepper,
    worker_settings: Settings,
    folders: dict[str, Path],
    data_dir: Path,
    tmp_path: Path,
    adapter: str,
) -> None:
    folder = merged(data_dir, tmp_path, folders[adapter], SCALES[adapter])
    other = loaded(worker_settings, MODEL, "none")
    whole = loaded(worker_settings.model_copy(update={"data_dir": folder}), MODEL, "none")
    tokens = [5, 100, 7, 200, 31, 8]
    network = plain._network
    (found,) = network.forward([(network.new_row(adapter), tokens)])
    (expected,) = whole._network.forward([(whole._network.new_row(), tokens)])

    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    for prompt in PROMPTS:
        text = text_of(alone(plain, completion(prompt, adapter)))
        assert text == text_of(alone(whole, completion(prompt)))
        assert text != text_of(alone(other, completion(prompt)))
        assert text_of(alone(plain, completion(prompt))) == text_of(alone(other, completion(prompt)))


@pytest.mark.parametrize("adapter", SCALES)
def test_beside_layers_of_few_bits_an_adapter_adds_what_it_adds_elsewhere(
    stepper: TextStepper, plain: TextStepper, adapter: str
) -> None:
    tokens = [5, 100, 7, 200, 31, 8]

    def scores(of: TextStepper, adapter: str | None) -> torch.Tensor:
        return of._network.forward([(of._network.new_row(adapter), tokens)])[0]

    added = scores(plain, adapter) - scores(plain, None)
    off = scores(stepper, adapter) - scores(plain, adapter)
    assert off.std() < 0.35 * added.std()


ASK = st.tuples(st.sampled_from(PROMPTS), st.sampled_from([None, "tiny", "other"]), st.integers(0, 20))


@given(asks=st.lists(ASK, min_size=2, max_size=6))
@examples(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everyone_has_their_own_text_in_a_mixed_batch(stepper: TextStepper, asks: list[Any]) -> None:
    jobs = [completion(prompt, adapter) for prompt, adapter, _ in asks]
    made, _ = run(stepper, [Arrival(job, tick=tick) for job, (*_, tick) in zip(jobs, asks, strict=True)])

    assert [text_of(one) for one in made] == [text_of(alone(stepper, job)) for job in jobs]


def test_rows_of_all_adapters_and_of_none_write_in_the_same_forwards(stepper: TextStepper) -> None:
    jobs = [completion("Hello", name) for name in (None, "tiny", "other")]
    _, forwards = run(stepper, [Arrival(job) for job in jobs])

    writing = [forward.members for forward in forwards if forward.phase is Phase.DECODE]
    assert (0, 1, 2) in writing


ROWS = st.lists(st.tuples(st.sampled_from([None, "tiny", "other"]), st.integers(1, 40)), min_size=1, max_size=9)


@given(others=ROWS, adapter=st.sampled_from([None, "tiny", "other"]), place=st.integers(0, 9), cut=st.integers(0, 4))
@examples(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_are_the_same_whatever_adapters_are_beside_a_row(
    stepper: TextStepper, packing: str, others: list[Any], adapter: str | None, place: int, cut: int
) -> None:
    network = stepper._network
    prompt = [3 + 7 * number % 250 for number in range(37)]
    (expected,) = network.forward([(network.new_row(adapter), prompt)])
    row: Any = network.new_row(adapter)
    parts = [prompt[: STRIDE * cut], prompt[STRIDE * cut :]]
    for part in filter(None, parts):
        feeds: list[Any] = [(network.new_row(name), [9] * length) for name, length in others]
        feeds.insert(place, (row, part))
        found = network.forward(feeds)[min(place, len(others))]
        row.length += len(part)

    if packing == "none":  # plain layers round otherwise in another company
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    else:
        assert torch.equal(found, expected)


def test_what_is_kept_of_a_prompt_is_kept_for_its_adapter(worker_settings: Settings, folders: dict[str, Path]) -> None:
    kept = loaded(worker_settings, adapted(folders), "none")
    bare = loaded(worker_settings.model_copy(update={"prefix_cache_mb": 0}), adapted(folders), "none")
    prompt = "the quick brown fox " * 20
    names: Sequence[str | None] = (None, "tiny", "other", "tiny", None)
    made = [alone(kept, completion(prompt, name)) for name in names]
    together, _ = run(kept, [Arrival(completion(prompt + "x", name)) for name in names])

    assert [bool(one.made["cached_tokens"]) for one in made] == [False, False, False, True, True]
    assert [text_of(one) for one in made] == [text_of(alone(bare, completion(prompt, name))) for name in names]
    assert [text_of(one) for one in together] == [
        text_of(alone(bare, completion(prompt + "x", name))) for name in names
    ]


def test_several_answers_have_the_adapter_of_their_prompt(plain: TextStepper) -> None:
    made = alone(plain, completion("Hello", "tiny", n=2, temperature=1.0), seed=4)
    first = alone(plain, completion("Hello", "tiny", temperature=1.0), seed=4)
    second = alone(plain, completion("Hello", "tiny", temperature=1.0), seed=5)

    assert [text_of(made, 0), text_of(made, 1)] == [text_of(first), text_of(second)]


def test_a_model_that_runs_everyone_alone_has_adapters_too(
    worker_settings: Settings, data_dir: Path, tmp_path: Path
) -> None:
    place = tmp_path / "sliding" / "tiny" / "text"
    shutil.copytree(data_dir / "tiny" / "text", place)
    config = AutoConfig.for_model(
        "mistral", **SIZES, vocab_size=len(AutoTokenizer.from_pretrained(place)), sliding_window=8
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(place)
    (place / "generation_config.json").write_text(json.dumps({}))
    folder = write(tmp_path / "adapter", pair(f"{LAYERS}.1.self_attn.q_proj", 64, 64))
    (tmp_path / "whole").mkdir()
    whole = merged(tmp_path / "sliding", tmp_path / "whole", folder, {"": 2})
    settings = worker_settings.model_copy(update={"data_dir": tmp_path / "sliding"})
    stepper = loaded(settings, adapted({"own": folder}), "none")
    expected = loaded(settings.model_copy(update={"data_dir": whole}), MODEL, "none")

    assert not stepper._network.shares
    made, _ = run(stepper, [Arrival(completion(PROMPTS[2], name)) for name in ("own", None)])
    texts = [text_of(one) for one in made]
    assert texts[0] == text_of(alone(expected, completion(PROMPTS[2]))) != texts[1]


# --- what is refused ---

FITTING = pair(f"{LAYERS}.0.self_attn.q_proj", 64, 64)


@pytest.mark.parametrize(
    ("weights", "config", "said"),
    [
        (FITTING, {"use_dora": True}, "it has use_dora; only plain LoRA of linear layers is served"),
        (FITTING, {"bias": "all"}, "it has bias all"),
        (FITTING, {"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
        (FITTING, {"peft_type": "IA3"}, "it has peft_type IA3"),
        (FITTING, {"init_lora_weights": "pissa_niter_4"}, "it has init_lora_weights pissa_niter_4, which changes"),
        (FITTING, {"lora_alpha": None}, "adapter_config.json: lora_alpha: Input should be a valid number"),
        (FITTING, {"r": "many"}, "adapter_config.json: r: Input should be a valid integer"),
        ({}, {}, "adapter_model.safetensors has nothing in it"),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(3, 331)},
            {},
            "has 'base_model.model.model.embed_tokens.lora_embedding_A' in it; only linear layers'",
        ),
        (
            {name: tensor for name, tensor in FITTING.items() if "lora_A" in name},
            {},
            "its two matrices for 'model.layers.0.self_attn.q_proj' do not fit together",
        ),
        (
            {name: tensor / 0 for name, tensor in FITTING.items()},
            {},
            "its matrices for 'model.layers.0.self_attn.q_proj' have something in them that is no number",
        ),
        (pair(f"{LAYERS}.7.self_attn.q_proj", 64, 64), {}, "for another model: there is no layer 'model.layers.7.self"),
        (pair(f"{LAYERS}.0.mlp.up_proj", 64, 128), {}, r"'model.layers.0.mlp.up_proj' maps \(64, 176\), and its own"),
        (pair("base_model.model.lm_head", 64, 331), {}, "changes 'lm_head', which is no linear layer inside"),
        (pair(f"{LAYERS}.0.mlp", 64, 64), {}, "changes 'model.layers.0.mlp', which is no linear layer"),
    ],
)
def test_an_adapter_that_is_not_served_is_a_sentence(
    worker_settings: Settings, tmp_path: Path, weights: Weights, config: dict[str, Any], said: str
) -> None:
    folder = write(tmp_path / "adapter", weights, **config)

    with pytest.raises(ModelUnavailable, match=rf"^model 'tinyllama-1.1b-chat': adapter 'own'.*{said}"):
        loaded(worker_settings, adapted({"own": folder}), "none")


def test_an_adapter_whose_files_are_missing_or_damaged_is_a_sentence(worker_settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", FITTING)
    (folder / WEIGHTS).write_bytes(b"not so")
    with pytest.raises(ModelUnavailable, match=r"adapter 'own': adapter_model.safetensors: "):
        loaded(worker_settings, adapted({"own": folder}), "none")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelUnavailable, match=r"adapter 'own': adapter_model.safetensors: no such file"):
        loaded(worker_settings, adapted({"own": folder}), "none")
    (folder / CONFIG).write_text("{")
    with pytest.raises(ModelUnavailable, match=r"adapter 'own': adapter_config.json: "):
        loaded(worker_settings, adapted({"own": folder}), "none")
