"""Chats by the token: the library's own greedy text, and everyone's own, whatever else is in the batch."""

import copy
import gc
import itertools
import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from openai import pydantic_function_tool
from pydantic import BaseModel, ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.engine.stepper import Result
from services.errors import Cancelled, GenerationFailed, InvalidRequest, ModelUnavailable
from services.registry import Template, load_models
from services.schema import MAX_SEED, complete
from services.settings import Settings
from services.templates import worded
from services.text import network as network_module
from services.text.calls import CallReader
from services.text.engine import Conversation, Phase, Reading, TextStepper, choose_packing
from services.text.linear import is_supported
from services.text.network import Network
from services.text.pieces import Call, Piece, Token
from services.text.portions import Portions
from services.text.prefixes import BLOCK
from services.text.prompts import Prompts, may_shrink
from services.text.rows import STRIDE, Feeds, Row
from services.text.sampling import Sampler
from services.text.schema import ChatJob, ChatRequest, CompletionJob, CompletionRequest, Function, Message
from tests.services.stepping import Arrival, Recorder, alone, run

MODEL = next(model for model in load_models() if model.id == "tinyllama-1.1b-chat")
DEFAULTS = {"model": MODEL.id, **MODEL.defaults_in("tiny")}
GREEDY = {"temperature": 0}
CONTEXT = 2048


def quickly(max_examples: int) -> examples:
    return examples(
        deadline=None, max_examples=max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def chat(*turns: str | Message, **fields: Any) -> ChatJob:
    """What the worker hands to the model: the user's words, or whole messages."""
    messages = tuple(turn if isinstance(turn, Message) else Message(role="user", content=turn) for turn in turns)
    return complete(ChatJob, ChatRequest(messages=messages, **{"max_tokens": 12, **fields}), DEFAULTS)


def completion(prompt: str | list[Any], **fields: Any) -> CompletionJob:
    return complete(CompletionJob, CompletionRequest(prompt=prompt, **{"max_tokens": 12, **fields}), DEFAULTS)


def text_of(made: Recorder, index: int = 0) -> str:
    return "".join(piece.text for piece in made.outputs if piece.index == index)


def reason_of(made: Recorder, index: int = 0) -> str | None:
    reasons: list[str | None] = [piece.finish_reason for piece in made.outputs if piece.index == index]
    return reasons[-1]


def tokens_of(made: Recorder, index: int = 0) -> list[Token]:
    return [token for piece in made.outputs if piece.index == index for token in piece.tokens]


def prompt_of(made: Recorder) -> Sequence[int]:
    (prompt,) = made.state.job.tokens(lambda _: ())
    return list(prompt)


def result_of(made: Recorder) -> Result:
    assert made.result is not None
    return made.result


@pytest.fixture(scope="module")
def worker_settings(worker_settings: Settings) -> Settings:
    """As the library has it: float32 in all."""
    return worker_settings.model_copy(update={"text_packing": "none"})


@pytest.fixture(scope="module")
def stepper(worker_settings: Settings) -> TextStepper:
    """The model, reading every prompt from its beginning."""
    return TextStepper(MODEL, worker_settings.model_copy(update={"prefix_cache_mb": 0}))


def counted(made: Recorder) -> tuple[int, int]:
    usage = made.made
    return usage["prompt_tokens"], usage["completion_tokens"]


PACKINGS = ["none", "float16", "int8", "int4"] if is_supported(torch.device("cpu")) else ["none"]


@pytest.fixture(scope="module", params=PACKINGS)
def pair(request: pytest.FixtureRequest, worker_settings: Settings) -> tuple[TextStepper, TextStepper]:
    """The model in each of its packings: reading every prompt from its beginning, and as it is served."""
    served, model = worker_settings.model_copy(update={"text_packing": request.param}), MODEL
    if request.param == "int4":  # by an entry alone
        served, model = worker_settings, MODEL.model_copy(update={"quantisation": "int4"})
    return TextStepper(model, served.model_copy(update={"prefix_cache_mb": 0})), TextStepper(model, served)


@pytest.fixture(scope="module")
def alone_only(worker_settings: Settings) -> TextStepper:
    """The same model, as one whose cache the library keeps to itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "DynamicLayer", type("Other", (), {}))
        return TextStepper(MODEL, worker_settings)


@dataclass
class Llama:
    """The library's own model."""

    tokenizer: Any
    network: Any

    def cut(self, job: ChatJob | CompletionJob) -> Sequence[int]:
        (prompt,) = Prompts(self.tokenizer, CONTEXT).tokens(job)
        return prompt

    def answer(self, job: ChatJob | CompletionJob, **arguments: Any) -> tuple[int, str]:
        """Its greedy answer: how many tokens, and the text."""
        prompt = list(self.cut(job))
        made = self.network.generate(
            torch.tensor([prompt]), max_new_tokens=job.max_tokens, max_length=None, do_sample=False, **arguments
        )[0, len(prompt) :]
        return len(made), self.tokenizer.decode(made, skip_special_tokens=True)


@pytest.fixture(scope="module")
def llama(data_dir: Path) -> Llama:
    folder = data_dir / "tiny" / "text"
    return Llama(AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder))


@pytest.fixture(params=["shared", "alone"])
def either(request: pytest.FixtureRequest, stepper: TextStepper, alone_only: TextStepper) -> TextStepper:
    return stepper if request.param == "shared" else alone_only


# --- the library's own ---


@pytest.mark.parametrize("prompt", ["Hello", "Wie heißt du? 世界 🐈", "the quick brown fox " * 40])
@pytest.mark.parametrize("temperature", [0, 1e-300])
def test_a_greedy_answer_is_the_librarys(either: TextStepper, llama: Llama, prompt: str, temperature: float) -> None:
    job = chat(prompt, temperature=temperature, max_tokens=40)
    made = alone(either, job, seed=3)
    num_tokens, text = llama.answer(job)

    assert text_of(made) == text
    assert made.made == {
        "prompt_tokens": len(llama.cut(job)),
        "cached_tokens": 0,
        "completion_tokens": num_tokens,
    }


def test_a_completion_goes_on_from_the_bare_text(stepper: TextStepper, llama: Llama) -> None:
    job = completion("the quick brown", **GREEDY)

    assert text_of(alone(stepper, job)) == llama.answer(job)[1]
    assert alone(stepper, job).made["prompt_tokens"] == len(llama.tokenizer("the quick brown")["input_ids"])


FIELDS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 30)},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_p": st.sampled_from([0.1, 0.9, 1.0]),
        "top_k": st.sampled_from([1, 5, 1000]),
        "n": st.integers(1, 3),
        "presence_penalty": st.sampled_from([-2.0, 0.5]),
        "frequency_penalty": st.sampled_from([-1.0, 2.0]),
        "logit_bias": st.just({"40": 5.0, "41": -100.0}),
        "stop": st.sampled_from(["e", ["the ", "and"], [" "]]),
        "logprobs": st.just(True),
        "response_format": st.just({"type": "json_object"}),
    },
)
PROMPTS = st.sampled_from(["Hello", "x", "the quick brown fox jumps " * 3, "世界" * 30, "a model " * 60])
ONE = st.tuples(PROMPTS, FIELDS, st.integers(0, MAX_SEED), st.integers(0, 25), st.none() | st.integers(1, 8))


@quickly(30)
@given(asks=st.lists(ONE, min_size=1, max_size=6), most=st.integers(1, 6), repeated=st.frozensets(st.integers(0, 40)))
def test_an_answer_is_its_own_whoever_comes_and_goes_beside_it(
    pair: tuple[TextStepper, TextStepper], asks: list[Any], most: int, repeated: frozenset[int]
) -> None:
    stepper, caching = pair
    arrivals = [
        Arrival(chat(prompt, **fields), seed, tick, stop_after) for prompt, fields, seed, tick, stop_after in asks
    ]
    made, _ = run(caching, arrivals, most=most, repeated=repeated)

    for (prompt, fields, seed, *_), one in zip(asks, made, strict=True):
        by_itself = alone(stepper, chat(prompt, **fields), seed)
        for index in range(fields.get("n", 1)):
            text, tokens = text_of(one, index), [token.text for token in tokens_of(one, index)]
            whole, all_tokens = text_of(by_itself, index), [token.text for token in tokens_of(by_itself, index)]
            if isinstance(one.error, Cancelled):
                assert (text, tokens) == (whole[: len(text)], all_tokens[: len(tokens)])
            else:
                assert (text, tokens) == (whole, all_tokens)
                assert reason_of(one, index) == reason_of(by_itself, index)
        if not isinstance(one.error, Cancelled):
            assert counted(one) == counted(by_itself)
            assert result_of(one).finish_reason == result_of(by_itself).finish_reason


@quickly(15)
@given(asks=st.lists(st.tuples(PROMPTS, st.integers(1, 30), st.integers(0, 20)), min_size=2, max_size=6))
def test_greedy_answers_are_the_librarys_however_they_overlap(
    stepper: TextStepper, llama: Llama, asks: list[tuple[str, int, int]]
) -> None:
    jobs = [chat(prompt, max_tokens=max_tokens, **GREEDY) for prompt, max_tokens, _ in asks]
    made, _ = run(stepper, [Arrival(job, tick=tick) for job, (_, _, tick) in zip(jobs, asks, strict=True)])

    assert [text_of(one) for one in made] == [llama.answer(job)[1] for job in jobs]


def test_a_cpu_packs_layers_unless_the_operator_chose_a_type(worker_settings: Settings) -> None:
    cpu = torch.device("cpu")
    automatic = worker_settings.model_copy(update={"text_packing": "auto"})
    best = "float16" if is_supported(cpu) else "none"

    assert choose_packing(automatic, cpu) == best
    assert choose_packing(automatic.model_copy(update={"dtype": "bfloat16"}), cpu) == "none"
    assert choose_packing(automatic, torch.device("meta")) == "none"
    assert choose_packing(worker_settings, cpu) == "none"
    with pytest.raises(ModelUnavailable, match="ATELIER_TEXT_PACKING=int8 needs a CPU"):
        choose_packing(worker_settings.model_copy(update={"text_packing": "int8"}), torch.device("meta"))


def test_a_models_entry_says_how_its_weights_are_kept_before_the_settings_do(worker_settings: Settings) -> None:
    packed = worker_settings.model_copy(update={"text_packing": "float16"})

    for device in (torch.device("cpu"), torch.device("meta")):
        assert choose_packing(packed, device, "int8") == "int8"
        assert choose_packing(worker_settings, device, "int4") == "int4"


def test_sharing_makes_no_difference(stepper: TextStepper, alone_only: TextStepper) -> None:
    for fields in ({"n": 3}, {"temperature": 2.0}, {"logprobs": True, "top_logprobs": 2}):
        job = chat("Hello", max_tokens=20, **fields)
        one, other = alone(stepper, job, seed=5), alone(alone_only, job, seed=5)
        for index in range(job.n):
            assert text_of(one, index) == text_of(other, index)
        assert result_of(one) == result_of(other)


# --- who shares what ---


def test_prompts_are_read_together_and_texts_written_together(stepper: TextStepper) -> None:
    made, forwards = run(stepper, [Arrival(completion("a", max_tokens=5), tick=tick) for tick in (0, 0, 0)])

    assert [(forward.phase, forward.members) for forward in forwards] == [
        (Phase.PREFILL, (0, 1, 2)),
        *[(Phase.DECODE, (0, 1, 2))] * 4,
    ]
    assert [one.made["completion_tokens"] for one in made] == [5, 5, 5]


PORTION = 64


@pytest.fixture
def evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as much in every forward, however long it takes."""
    monkeypatch.setattr(Portions, "most", property(lambda self: PORTION))


@pytest.mark.usefixtures("evenly")
def test_a_long_prompt_is_read_in_parts_between_the_others_tokens(stepper: TextStepper) -> None:
    long = completion("the " * (3 * PORTION + PORTION // 2), max_tokens=2)
    made, forwards = run(stepper, [Arrival(completion("a", max_tokens=30)), Arrival(long, tick=3)])
    phases = [forward.phase for forward in forwards]
    first = phases.index(Phase.PREFILL, 1)
    num_parts = -(-made[1].made["prompt_tokens"] // PORTION)

    assert num_parts >= 3
    assert phases[first : first + 2 * num_parts] == [Phase.PREFILL, Phase.DECODE] * num_parts


@pytest.mark.usefixtures("evenly")
def test_who_comes_first_is_read_first_and_nobody_is_told_of_parts_that_are_not_his(stepper: TextStepper) -> None:
    jobs = [completion("the " * size, max_tokens=1) for size in (PORTION + 30, 10, 20)]
    made, forwards = run(stepper, [Arrival(job) for job in jobs])

    assert [forward.members for forward in forwards] == [(0, 1, 2), (0, 1, 2)]
    assert [len(one.progress) for one in made] == [2, 1, 1]


def test_a_model_with_a_cache_of_its_own_runs_everyone_alone_and_says_so(
    worker_settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "DynamicLayer", type("Other", (), {}))
    made = TextStepper(MODEL, worker_settings)
    _, forwards = run(made, [Arrival(chat("Hello")), Arrival(chat("you"))])

    assert "one at a time, because its cache is not a plain one" in caplog.text
    assert all(len(forward.members) == 1 for forward in forwards)


def test_a_model_whose_scores_would_differ_runs_everyone_alone_and_says_so(
    worker_settings: Settings, llama: Llama, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Feeds, "positions", property(lambda self: [0] * len(self.tokens)))
    made = TextStepper(MODEL, worker_settings)
    job = chat("Hello", **GREEDY)

    assert "standard deviations off" in caplog.text
    assert text_of(alone(made, job)) == llama.answer(job)[1]


# --- the parameters ---


@pytest.mark.parametrize("fields", [{"temperature": 2}, {"top_p": 1e-300}, {"top_k": 1000}, {"top_k": 1}, {"top_p": 1}])
def test_parameters_may_have_their_extremes(stepper: TextStepper, fields: dict[str, Any]) -> None:
    assert alone(stepper, chat("Hello", **fields)).outputs


def test_several_answers_share_one_reading_of_the_prompt_and_differ(stepper: TextStepper) -> None:
    made, forwards = run(stepper, [Arrival(completion("the", n=4, max_tokens=20, temperature=1.5), seed=8)])
    (one,) = made

    assert len({text_of(one, index) for index in range(4)}) == 4
    assert [forward.phase for forward in forwards].count(Phase.PREFILL) == 1
    assert one.made["completion_tokens"] == 80
    for index in range(4):
        assert text_of(alone(stepper, completion("the", max_tokens=20, temperature=1.5), seed=8 + index)) == text_of(
            one, index
        )


def test_a_stop_string_ends_the_text_before_it(stepper: TextStepper) -> None:
    whole = text_of(alone(stepper, chat("Hello", max_tokens=40, **GREEDY)))
    for size in (1, 3, 9):  # the longer ones lie across tokens
        stop = whole[20 : 20 + size]
        made = alone(stepper, chat("Hello", max_tokens=40, stop=["\u4e16", stop], **GREEDY))

        assert text_of(made) == whole[: whole.index(stop)]
        assert reason_of(made) == "stop"
        assert result_of(made).finish_reason == "stop"
        assert made.made["completion_tokens"] < 40


def test_text_that_only_began_like_a_stop_string_comes_in_the_end(stepper: TextStepper) -> None:
    whole = text_of(alone(stepper, chat("Hello", **GREEDY)))
    made = alone(stepper, chat("Hello", stop=[whole[-3:] + "\u4e16"], **GREEDY))

    assert text_of(made) == whole
    assert reason_of(made) == "length"


def test_a_bias_forbids_and_forces(stepper: TextStepper, llama: Llama) -> None:
    first = llama.tokenizer("Hello", add_special_tokens=False)["input_ids"][0]
    forced = alone(stepper, chat("Hello", logit_bias={str(first): 100}, max_tokens=3))
    assert text_of(forced) == llama.tokenizer.decode([first] * 3)

    forbidden = alone(stepper, chat("Hello", logit_bias={str(first): -100}, temperature=2, max_tokens=60))
    assert llama.tokenizer.decode([first]) not in text_of(forbidden)


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalties_make_a_text_repeat_itself_less(stepper: TextStepper, penalty: str) -> None:
    def variety(value: float) -> int:
        made = alone(stepper, completion("the", logprobs=0, max_tokens=60, **{penalty: value, **GREEDY}))
        return len({token.text for token in tokens_of(made)})

    assert variety(-2) < variety(0) < variety(2)


def test_probabilities_are_the_models_own(stepper: TextStepper, llama: Llama) -> None:
    made = alone(stepper, chat("Hello", logprobs=True, top_logprobs=3, temperature=1.7, max_tokens=4), seed=1)
    prompt = list(llama.cut(chat("Hello")))
    written: list[int] = []
    for token in tokens_of(made):
        with torch.inference_mode():
            scores = llama.network(torch.tensor([prompt + written])).logits[0, -1].log_softmax(0)
        values, tokens = scores.topk(3)
        chosen = int((scores - token.logprob).abs().argmin())
        written.append(chosen)

        assert token.logprob == pytest.approx(float(scores[chosen]), abs=1e-4)
        assert token.text == llama.tokenizer.decode([chosen])
        assert [one.text for one in token.likeliest] == [llama.tokenizer.decode([one]) for one in tokens.tolist()]
        assert [one.logprob for one in token.likeliest] == pytest.approx(values.tolist(), abs=1e-4)
    assert "".join(token.text for token in tokens_of(made)) == text_of(made)


def test_probabilities_of_what_a_stop_string_cut_off_are_not_told(stepper: TextStepper) -> None:
    whole = alone(stepper, chat("Hello", max_tokens=40, logprobs=True, **GREEDY))
    for size in (2, 4, 15):  # the longest lies across tokens
        stop = text_of(whole)[20 : 20 + size]
        made = alone(stepper, chat("Hello", max_tokens=40, logprobs=True, stop=stop, **GREEDY))
        shown = [token.text for token in tokens_of(made)]

        assert "".join(shown).startswith(text_of(made))
        assert text_of(made).startswith("".join(shown[:-1]))  # the last one may go on into the stop string


def test_two_hundred_who_leave_take_their_rows_with_them(worker_settings: Settings) -> None:
    made = TextStepper(MODEL, worker_settings.model_copy(update={"prefix_cache_mb": 1}))
    dice = random.Random(0)
    arrivals = [
        Arrival(
            completion(
                [f"{dice.randint(0, 9)} the quick brown fox " * dice.randint(1, 40) for _ in range(dice.randint(1, 3))],
                n=dice.randint(1, 3),
                logit_bias={"2": -100},
            ),
            tick=5 * number,
            stop_after=stop,
        )
        for number, stop in enumerate(dice.randint(1, 10) for _ in range(200))
    ]
    recorders, _ = run(made, arrivals)
    num_left = sum(isinstance(one.error, Cancelled) for one in recorders)
    kept = made._prefixes
    del recorders

    gc.collect()
    assert num_left == 200
    assert not [one for one in gc.get_objects() if type(one) in (Row, Reading, Conversation)]
    assert kept is not None
    held = [tensor for block in kept._blocks.values() for layer in block for tensor in layer]
    assert 0 < sum(tensor.untyped_storage().nbytes() for tensor in held) <= 1e6


@pytest.mark.parametrize(
    ("dtype", "bits", "shares"),
    [("float32", None, False), ("bfloat16", None, True), ("float32", "int8", True), ("float32", "int4", True)],
)
def test_rows_that_are_rounded_may_differ_in_the_trial(
    worker_settings: Settings, monkeypatch: pytest.MonkeyPatch, dtype: str, bits: Any, shares: bool
) -> None:
    probe = Network._probe

    def roundly(self: Network, own: str) -> tuple[torch.Tensor, torch.Tensor]:
        expected, found = probe(self, own)
        return expected, found + 0.2 * expected.std()

    monkeypatch.setattr(Network, "_probe", roundly)
    model = MODEL.model_copy(update={"quantisation": bits})
    made = TextStepper(model, worker_settings.model_copy(update={"dtype": dtype}))
    _, forwards = run(made, [Arrival(chat("Hello")), Arrival(chat("you"))])

    assert all(len(forward.members) == 2 for forward in forwards) == shares


# --- several prompts, and what is known of their own tokens ---


def test_several_prompts_are_answered_as_each_would_be_by_itself(either: TextStepper) -> None:
    texts = ["the quick", "a", "the quick", *(f"the {number} " * 9 for number in range(7))]
    fields: dict[str, Any] = {"n": 2, "max_tokens": 9, "temperature": 1.0, "logprobs": 1}
    together = alone(either, completion(texts, **fields), seed=5)
    for number, text in enumerate(texts):
        one = alone(either, completion(text, **fields), seed=5 + 2 * number)
        for place in range(2):
            assert text_of(together, 2 * number + place) == text_of(one, place)
            assert reason_of(together, 2 * number + place) == reason_of(one, place)

    assert text_of(together, 0) != text_of(together, 4)  # the same prompt
    assert counted(together)[0] == sum(len(prompt) for prompt in together.state.job.tokens(lambda _: ()))


def test_so_many_prompts_take_no_more_memory_than_so_many_answers(stepper: TextStepper) -> None:
    few, many = completion(["a"] * 8, max_tokens=4), completion(["a"] * 100, max_tokens=4)
    (made,), _ = run(stepper, [Arrival(many)])

    assert stepper.cost(few) == stepper.cost(many) == stepper.cost(completion("a", max_tokens=4, n=8))
    assert {reason_of(made, index) for index in range(100)} <= {"length", "stop"}


def test_a_prompt_may_be_numbers_of_tokens(stepper: TextStepper, llama: Llama) -> None:
    tokens = llama.tokenizer("the quick brown fox")["input_ids"]
    made = alone(stepper, completion([tokens, tokens[1:]], echo=True, **GREEDY))
    as_text = alone(stepper, completion("the quick brown fox", **GREEDY))

    assert text_of(made, 0) == llama.tokenizer.decode(tokens) + text_of(as_text)
    assert counted(made)[0] == 2 * len(tokens) - 1
    for unknown in (99_999, 2**63):
        with pytest.raises(InvalidRequest, match=f"does not know token {unknown}"):
            alone(stepper, completion([1, unknown]))


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_the_prompts_own_probabilities_are_the_models(either: TextStepper, llama: Llama, max_tokens: int) -> None:
    text = "the quick brown fox " * 40  # which is read in parts
    alone(either, completion(text, max_tokens=1))  # and is known already
    job = completion(text, echo=True, logprobs=2, max_tokens=max_tokens, **GREEDY)
    made = alone(either, job)
    prompt = llama.tokenizer(text)["input_ids"]
    shown = tokens_of(made)
    with torch.inference_mode():
        expected = llama.network(torch.tensor([prompt])).logits[0].log_softmax(-1)

    assert text_of(made) == "".join(token.text for token in shown)
    assert text_of(made).startswith(text)
    assert made.made == {"prompt_tokens": len(prompt), "cached_tokens": 0, "completion_tokens": max_tokens}
    assert len(shown) == len(prompt) + max_tokens
    assert (shown[0].text, shown[0].logprob, shown[0].likeliest) == ("", None, ())
    for place, token in enumerate(shown[1 : len(prompt)]):
        assert token.logprob == pytest.approx(float(expected[place, prompt[place + 1]]), abs=1e-3)
        assert token.likeliest[0].logprob == pytest.approx(float(expected[place].max()), abs=1e-3)
    assert reason_of(made) == "length"


@quickly(25)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40), length=st.integers(1, 150))
def test_a_packed_prompt_is_read_the_same_however_it_is_cut(
    pair: tuple[TextStepper, TextStepper], sizes: list[int], length: int
) -> None:
    network = pair[0]._network
    prompt = [3 + 7 * place % 250 for place in range(length)]
    (expected,) = network.forward([(network.new_row(), prompt)])
    row: Any = network.new_row()
    other: Any = network.new_row()
    for size in itertools.cycle(sizes):
        part = prompt[row.length : row.length + STRIDE * size]
        found, _ = network.forward([(row, part), (other, [5] * size)])
        row.length += len(part)
        if row.length == length:
            break

    is_packed = not any(type(layer) is torch.nn.Linear for layer in network._network.modules())
    assert torch.equal(expected, found) if is_packed else torch.allclose(expected, found, rtol=1e-3, atol=1e-3)


# --- prompts that begin alike ---


def test_what_a_prompt_begins_with_is_read_once(worker_settings: Settings, stepper: TextStepper) -> None:
    made = TextStepper(MODEL, worker_settings)
    shared = "the quick brown fox " * 30
    jobs = [completion(shared + end, **GREEDY) for end in ("jumps", "and I", "jumps")]
    results = [alone(made, job) for job in jobs]
    cached = [one.made["cached_tokens"] for one in results]
    length = results[0].made["prompt_tokens"]

    assert cached[0] == 0
    assert cached[1] == cached[2] == (length - 1) // BLOCK * BLOCK > PORTION
    assert [text_of(one) for one in results] == [text_of(alone(stepper, job)) for job in jobs]
    assert len(results[2].progress) < len(results[0].progress)


def test_those_who_come_together_read_what_their_prompts_share_once(worker_settings: Settings) -> None:
    made = TextStepper(MODEL, worker_settings)
    shared = Message(role="system", content="the quick brown fox jumps over the lazy dog " * 30)
    jobs = [chat(shared, words, max_tokens=4, **GREEDY) for words in ("Hello", "Who?", "Hello")]
    together, _ = run(made, [Arrival(job) for job in jobs])
    expected = [text_of(alone(TextStepper(MODEL, worker_settings), job)) for job in jobs]

    assert [text_of(one) for one in together] == expected
    first, second, third = (one.made["cached_tokens"] for one in together)
    assert first == 0
    prompts = [prompt_of(one) for one in together]
    num_shared = next(place for place, pair in enumerate(zip(*prompts[:2], strict=False)) if pair[0] != pair[1])
    assert num_shared > 4 * BLOCK
    assert second == num_shared // BLOCK * BLOCK
    assert third == (len(prompts[2]) - 1) // BLOCK * BLOCK
    assert [one.made["prompt_tokens"] for one in together] == [len(prompt_of(one)) for one in together]


def test_a_prompt_that_is_known_whole_is_still_read_to_its_last_token(worker_settings: Settings, llama: Llama) -> None:
    made = TextStepper(MODEL, worker_settings)
    tokens = llama.tokenizer("the quick brown fox " * 50)["input_ids"][: 2 * BLOCK]
    job = completion(llama.tokenizer.decode(tokens[1:]), **GREEDY)
    assert len(llama.cut(job)) == 2 * BLOCK
    first, second = alone(made, job), alone(made, job)

    assert text_of(first) == text_of(second)
    assert second.made["cached_tokens"] == BLOCK


def test_what_is_kept_of_prompts_is_bounded_and_the_oldest_goes_first(worker_settings: Settings) -> None:
    bytes_per_block = 2 * 2 * 2 * 16 * 4 * BLOCK  # layers, keys and values, heads, width, bytes
    made = TextStepper(MODEL, worker_settings.model_copy(update={"prefix_cache_mb": 3}))
    num_kept = 3_000_000 // bytes_per_block
    assert made._prefixes is not None
    for number in range(num_kept // 10 + 5):
        alone(made, completion(f"{number} the quick brown fox " * 60, max_tokens=1))
        assert made._prefixes._num_bytes == len(made._prefixes._blocks) * bytes_per_block <= 3_000_000
    assert len(made._prefixes._blocks) > num_kept - 30
    assert alone(made, completion("0 the quick brown fox " * 60)).made["cached_tokens"] == 0


# --- documents and calls ---

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What it is like outside",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
INTEGER = {"type": "integer"}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_keeps_to_a_schema_beside_one_that_need_not(either: TextStepper, seed: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    strict = chat("Who?", response_format=wanted, max_tokens=300, temperature=1.5, n=2)
    (made, other), _ = run(either, [Arrival(strict, seed), Arrival(chat("Hello"), seed)])
    for index in range(2):
        person = json.loads(text_of(made, index))
        assert set(person) == {"name", "age", "kind"}
        assert isinstance(person["age"], int)
        assert 0 <= person["age"] <= 130
        assert person["kind"] in ("cat", "dog")
        assert len(person["name"]) <= 8
        assert reason_of(made, index) == "stop"
    assert text_of(other) == text_of(alone(either, chat("Hello"), seed))


def test_an_answer_that_must_be_an_object_is_one_or_was_cut_off(stepper: TextStepper) -> None:
    made = alone(stepper, chat("Who?", response_format={"type": "json_object"}, max_tokens=120), seed=2)

    assert text_of(made).startswith("{")
    if reason_of(made) == "stop":
        assert isinstance(json.loads(text_of(made)), dict)
    else:
        assert reason_of(made) == "length"


def test_a_schema_that_cannot_be_kept_to_is_refused_by_naming_the_parameter(stepper: TextStepper) -> None:
    for schema in ({"type": "nonsense"}, {"type": "string", "pattern": "("}, {"$ref": "#"}):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        (made,), _ = run(stepper, [Arrival(chat("Who?", response_format=wanted))])
        assert isinstance(made.error, InvalidRequest)
        assert made.error.param == "response_format"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "nonsense"}}}}}
    (made,), _ = run(stepper, [Arrival(chat("Who?", tools=[tool], tool_choice="required"))])
    assert isinstance(made.error, InvalidRequest)
    assert made.error.param == "tools"


def test_a_document_that_becomes_too_much_to_work_out_is_not_passed_off_as_whole(stepper: TextStepper) -> None:
    schema = {"type": "string", "pattern": "^(([a-z]{1,50}[0-9]?){1,50}x?){1,50}$"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = chat("Who?", response_format=wanted, temperature=2, top_k=1000, top_p=1, max_tokens=200)
    (made,), _ = run(stepper, [Arrival(asked)])

    assert isinstance(made.error, GenerationFailed)
    assert reason_of(made) is None


def broad(number: int, required: Sequence[str] = ()) -> dict[str, Any]:
    properties = {f"p{each}": {"type": "string", "maxLength": 100} for each in range(number)}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


@pytest.mark.parametrize("where", [lambda one: one, lambda one: {"type": "array", "items": {"anyOf": [one]}}])
def test_an_object_with_too_many_optional_properties_is_refused_at_once(stepper: TextStepper, where: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": where(broad(1200))}}
    (made,), _ = run(stepper, [Arrival(chat("Who?", response_format=wanted))])
    assert isinstance(made.error, InvalidRequest)
    assert (made.error.param, made.outputs) == ("response_format", [])

    function = Function(name="f", parameters={"type": "object", "properties": {"a": where(broad(1200))}})
    with pytest.raises(InvalidRequest) as refusal:  # a chat would be refused before for its length
        stepper._grammars.of_calls([function], is_parallel=False)
    assert refusal.value.param == "tools"


@pytest.mark.parametrize("schema", [broad(500), broad(1200, [f"p{each}" for each in range(1000)])])
def test_an_object_may_have_many_properties(stepper: TextStepper, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = alone(stepper, chat("Who?", response_format=wanted, max_tokens=30, temperature=1.5))

    assert text_of(made).startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_must_be_made_is_made(stepper: TextStepper, choice: Any, seed: int) -> None:
    tools = [WEATHER] if choice == "required" else [WEATHER, CLOCK]
    asked = chat("Weather?", tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=300)
    made = alone(stepper, asked, seed=seed)
    (call,) = [call for piece in made.outputs for call in piece.calls]

    assert (call.number, call.name) == (0, "weather")
    assert set(json.loads(call.arguments)) == {"city", "days"}
    assert text_of(made) == ""
    assert reason_of(made) == result_of(made).finish_reason == "tool_calls"


def test_a_number_in_a_call_is_one_that_json_knows(
    stepper: TextStepper, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(monkeypatch, llama, '<tool_call>\n{"name":"f","arguments":{"n":1e999}}\n</tool_call></s>')
    schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    made = alone(stepper, chat("How much?", tools=[tool], tool_choice="required", max_tokens=300))

    assert [call.arguments for piece in made.outputs for call in piece.calls] == ['{"n":1e999}']


@pytest.mark.parametrize("parameters", [{}, {"properties": {"a": INTEGER}, "required": ["a"]}, {"maxProperties": 1}])
def test_arguments_are_an_object_also_where_the_schema_does_not_say_so(
    stepper: TextStepper, llama: Llama, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any]
) -> None:
    begun = '<tool_call>\n{"name":"f","arguments":'
    begin_with(monkeypatch, llama, begun)
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    null = {str(token): 100 for token in llama.tokenizer("null", add_special_tokens=False)["input_ids"]}
    length = len(llama.tokenizer(begun, add_special_tokens=False)["input_ids"])
    asked = chat("Which?", tools=[tool], tool_choice="required", logit_bias=null, max_tokens=length + 1)

    assert text_of(alone(stepper, asked)).startswith(begun + "{")


def test_arguments_of_another_type_are_refused() -> None:
    for kind in ("nonsense", "string", ["object", "null"], None):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}
        with pytest.raises(ValidationError) as refusal:
            chat("Which?", tools=[tool])
        assert refusal.value.errors()[0]["loc"][0] == "tools"


class Kind(Enum):
    """What animals there are."""

    CAT = "cat"
    DOG = "dog"


class Animal(BaseModel):
    """Holds one of another type."""

    kind: Kind


class Herd(BaseModel):
    """Holds others, and others like itself."""

    first: Animal
    rest: list["Herd"]


HERD = '{"first":{"kind":"cat"},"rest":[{"first":{"kind":"dog"},"rest":[]}]}'


@pytest.mark.parametrize("choice", ["required", "auto", {"type": "function", "function": {"name": "f"}}])
@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        (pydantic_function_tool(Herd)["function"]["parameters"], HERD),
        (Herd.model_json_schema(), HERD),
        ({"type": "object", "definitions": {"a": {}}, "properties": {"n": {"$ref": "#/definitions/a"}}}, '{"n":3}'),
        ({"type": "object", "properties": {"n": {"$ref": "#/properties/a"}, "a": INTEGER}}, '{"n":3,"a":4}'),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}, "additionalProperties": False}, '{"n":{"n":{}}}'),
    ],
    ids=["the SDK's", "pydantic's", "definitions", "a pointer", "the root"],
)
def test_parameters_may_point_at_their_own_definitions(
    stepper: TextStepper, llama: Llama, monkeypatch: pytest.MonkeyPatch, choice: Any, parameters: Any, arguments: str
) -> None:
    begin_with(monkeypatch, llama, f'<tool_call>\n{{"name":"f","arguments":{arguments}}}\n</tool_call></s>')
    other = {"type": "object", "$defs": {"Animal": {"type": "null"}}, "properties": {"a": {"$ref": "#/$defs/Animal"}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
        for name, schema in (("f", parameters), ("g", other))
    ]
    made = alone(stepper, chat("Which?", tools=tools, tool_choice=choice, max_tokens=300))

    assert [(call.name, call.arguments) for piece in made.outputs for call in piece.calls] == [("f", arguments)]


def begin_with(monkeypatch: pytest.MonkeyPatch, llama: Llama, text: str) -> None:
    """Let answers begin with the text, as if the model had written it, and go on by themselves."""
    begun: dict[Sampler, Any] = {}
    tokens = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
    choose = Sampler.choose

    def choose_next(sampler: Sampler, scores: torch.Tensor, allowed: torch.Tensor | None = None) -> int:
        token = next(begun.setdefault(sampler, iter(tokens)), None)
        if token is None:
            return choose(sampler, scores, allowed)
        assert allowed is None or allowed[token], f"the grammar forbids {llama.tokenizer.decode(token)!r}"
        return int(token)

    monkeypatch.setattr(Sampler, "choose", choose_next)


@pytest.mark.parametrize("seed", range(3))
def test_a_strict_call_that_may_be_made_keeps_to_its_schema(
    stepper: TextStepper, llama: Llama, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    begin_with(monkeypatch, llama, "Let me look.\n<tool_call>")
    tools = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    asked = chat("Weather?", tools=tools, parallel_tool_calls=False, max_tokens=300, temperature=1.5)
    made = alone(stepper, asked, seed=seed)
    (call,) = [call for piece in made.outputs for call in piece.calls]

    assert call.name == "weather"
    arguments = json.loads(call.arguments)
    assert set(arguments) == {"city", "days"}
    assert arguments["days"] <= 9
    assert text_of(made) == "Let me look.\n"
    assert reason_of(made) == "tool_calls"


def test_text_ends_as_ever_where_a_strict_call_may_be_made(
    stepper: TextStepper, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(monkeypatch, llama, "It <rains>.</s>")
    tools = [CLOCK, {**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    made = alone(stepper, chat("Weather?", tools=tools, max_tokens=100))

    assert text_of(made) == "It <rains>."
    assert reason_of(made) == "stop"


def test_beside_a_strict_function_the_arguments_of_another_may_be_anything(
    stepper: TextStepper, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = '<tool_call>\n{"name":"clock","arguments":{"zone":["UTC"]}}\n</tool_call>'
    begin_with(monkeypatch, llama, f"{calls}\n{calls} Both.</s>")
    tools = [CLOCK, {**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    made = alone(stepper, chat("When?", tools=tools, max_tokens=300))
    found = [(call.name, json.loads(call.arguments)) for piece in made.outputs for call in piece.calls]

    assert found == [("clock", {"zone": ["UTC"]})] * 2
    assert text_of(made) == "Both."


def test_a_stop_string_does_not_break_a_call_that_must_be_made(stepper: TextStepper) -> None:
    asked = chat("Weather?", tools=[WEATHER], tool_choice="required", stop=["\n", "{"], max_tokens=300)
    made = alone(stepper, asked)

    assert [call.name for piece in made.outputs for call in piece.calls][:1] == ["weather"]


@pytest.mark.parametrize("value", ["Zoë", "é😀中", None])
def test_a_document_may_need_tokens_that_the_model_never_writes_by_itself(stepper: TextStepper, value: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": value}}}  # also null
    made = alone(stepper, chat("Who?", response_format=wanted, max_tokens=60))

    assert json.loads(text_of(made)) == value
    assert not any("\ufffd" in piece.text for piece in made.outputs)


def test_calls_one_at_a_time_end_the_answer_after_the_first(
    stepper: TextStepper, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    written = iter(llama.tokenizer(f"{one} {one}", add_special_tokens=False)["input_ids"])
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(written))
    made = alone(stepper, chat("When?", tools=[CLOCK], parallel_tool_calls=False, max_tokens=300))

    assert [call.name for piece in made.outputs for call in piece.calls] == ["clock"]
    assert (text_of(made), reason_of(made)) == ("", "tool_calls")


def test_tools_are_told_of_in_words_where_the_template_knows_none(llama: Llama) -> None:
    told = llama.tokenizer.decode(llama.cut(chat("Hello", tools=[WEATHER, CLOCK])))
    untold = llama.tokenizer.decode(llama.cut(chat("Hello", tools=[WEATHER, CLOCK], tool_choice="none")))

    assert '"name": "weather"' in told
    assert '"name": "clock"' in told
    assert "<tool_call>" in told
    assert untold == llama.tokenizer.decode(llama.cut(chat("Hello")))


def test_calls_and_their_results_are_part_of_the_chat(llama: Llama) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
    turns = [
        Message(role="user", content="What time is it?"),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", tool_call_id="call_1", content="noon"),
    ]
    told = llama.tokenizer.decode(llama.cut(chat(*turns)))

    assert '{"name": "clock", "arguments": {"zone": "UTC"}}' in told
    assert "<tool_response>\nnoon\n</tool_response>" in told


@given(
    parts=st.lists(
        st.sampled_from(
            ["Hi ", "<", "<tool", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "世", "\n"]
        ),
        max_size=8,
    ),
    sizes=st.lists(st.integers(1, 9), min_size=1),
)
def test_calls_are_found_however_the_text_is_cut(parts: list[str], sizes: list[int]) -> None:
    text, reader, start = "".join(parts), CallReader({"f"}), 0
    found: list[str | Call] = []
    for size in sizes * len(text):
        found += reader.add(text[start : start + size])
        start += size
    found += reader.finish()
    calls = [part for part in found if isinstance(part, Call)]
    words = "".join(part for part in found if isinstance(part, str))
    expected = re.split("<tool_call>.*?</tool_call>", text, flags=re.DOTALL)

    assert [(call.number, call.name, call.arguments) for call in calls] == [
        (number, "f", '{"a": 1}') for number in range(len(expected) - 1)
    ]
    assert words == expected[0] + "".join(part.lstrip() for part in expected[1:])


@pytest.mark.parametrize(
    "arguments",
    [
        '{"x":1e999,"y":0.10,"z":12345678901234567890.123}',
        "{}",
        '{ "a" : "\\u00e9, } \\ud800" ,\n"name":{"arguments":[-0.0, 1E+2]}}',
        '{"a": ' + "9" * 5000 + "}",
    ],
)
@pytest.mark.parametrize(
    "call", ['{{"name":"f","arguments":{}}}', '\n {{ "arguments" : {} ,\t"id":[1], "name":\n"f"}}\n']
)
def test_arguments_are_handed_out_as_the_model_wrote_them(arguments: str, call: str) -> None:
    reader = CallReader({"f"})
    (found,) = [*reader.add(f"<tool_call>{call.format(arguments)}</tool_call>"), *reader.finish()]

    assert isinstance(found, Call)
    assert (found.name, found.arguments) == ("f", arguments)


@pytest.mark.parametrize(
    "inside",
    [
        "no JSON",
        "{}",
        '{"name": 3, "arguments": {}}',
        '{"name": "other", "arguments": {}}',
        '{"name": "f", "arguments": 5}',
        "[1]",
        '{"name": "f", "arguments": ' + "[" * 3000,
        '{"name": "f", "arguments": {"a": Infinity}}',
        '{"name": "f", "arguments": {"a": [NaN]}}',
        '{"name": "f", "arguments": {}} {}',
    ],
)
def test_what_only_looks_like_a_call_is_text(inside: str) -> None:
    reader = CallReader({"f"})
    text = f"<tool_call>{inside}</tool_call> and <tool_call>unfinished"

    assert "".join(map(str, [*reader.add(text), *reader.finish()])) == text
    assert reader.num_calls == 0


def test_a_template_without_a_systems_turn_is_given_none(
    worker_settings: Settings, data_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(data_dir / "tiny" / "text", tmp_path / "tiny" / "text")
    (tmp_path / "tiny" / "text" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    strict = TextStepper(MODEL, worker_settings.model_copy(update={"data_dir": tmp_path}))

    assert text_of(alone(strict, chat("Hello")))
    (made,), _ = run(strict, [Arrival(chat(Message(role="system", content="Be brief."), "Hello"))])
    assert isinstance(made.error, InvalidRequest)
    assert made.error.param == "messages"
    assert "no system" in made.error.message


def test_a_template_that_stumbles_over_a_chat_refuses_it_by_naming_messages(
    worker_settings: Settings, data_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(data_dir / "tiny" / "text", tmp_path / "tiny" / "text")
    (tmp_path / "tiny" / "text" / "chat_template.jinja").write_text("{{ messages[-1].content + 1 }}")
    made = TextStepper(MODEL, worker_settings.model_copy(update={"data_dir": tmp_path}))

    with pytest.raises(InvalidRequest) as refusal:
        made.cost(chat("Hello"))
    assert refusal.value.param == "messages"


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_numbers_that_overflowed_are_no_answer(
    stepper: TextStepper, monkeypatch: pytest.MonkeyPatch, wrong: float, max_tokens: int
) -> None:
    forward = Network.forward

    def overflow(*given: Any) -> Sequence[torch.Tensor]:
        return [scores.index_fill(1, torch.tensor([50]), wrong) for scores in forward(*given)]

    monkeypatch.setattr(Network, "forward", overflow)
    job = completion([1, 20, 30, 40], echo=max_tokens == 0, logprobs=1, max_tokens=max_tokens)
    (made,), _ = run(stepper, [Arrival(job)])

    assert isinstance(made.error, GenerationFailed)
    assert made.outputs == []


ALTERNATING = (  # as Gemma's is
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_template_without_a_systems_turn_is_told_of_tools_in_the_users_first(
    worker_settings: Settings, data_dir: Path, tmp_path: Path, choice: str
) -> None:
    shutil.copytree(data_dir / "tiny" / "text", tmp_path / "tiny" / "text")
    (tmp_path / "tiny" / "text" / "chat_template.jinja").write_text(ALTERNATING)
    strict = TextStepper(MODEL, worker_settings.model_copy(update={"data_dir": tmp_path}))
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        Message(role="user", content="Weather?"),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", tool_call_id="call_1", content="rain"),
    ]
    job = chat(*turns, tools=[WEATHER], tool_choice=choice, max_tokens=200)
    told = strict._tokenizer.decode(strict._prompts.tokens(job)[0])

    assert told.startswith("<user>You may call functions.")
    assert told.count('"name": "weather", "description"') == 1
    assert "</tool_call>\n\nWeather?\n<assistant>" in told
    made = alone(strict, job)
    assert choice == "auto" or [call.name for piece in made.outputs for call in piece.calls][:1] == ["weather"]


# --- ends and limits ---


def test_text_ends_where_it_was_told_to_or_by_itself(stepper: TextStepper, data_dir: Path, tmp_path: Path) -> None:
    cut = alone(stepper, chat("Hello", max_tokens=1))
    assert (cut.made["completion_tokens"], result_of(cut).finish_reason) == (1, "length")

    shutil.copytree(data_dir / "tiny" / "text", tmp_path / "tiny" / "text")
    file = tmp_path / "tiny" / "text" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": list(range(2, 300))}))
    curt = alone(TextStepper(MODEL, Settings(data_dir=tmp_path)), chat("Hello"))
    assert (curt.made["completion_tokens"], result_of(curt).finish_reason) == (1, "stop")
    assert (text_of(curt), reason_of(curt)) == ("", "stop")


def test_a_text_that_no_context_holds_is_refused_before_it_is_cut(
    stepper: TextStepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepper._prompts, "_tokenizer", None)
    with pytest.raises(InvalidRequest) as refusal:
        stepper.cost(completion("x" * 127_999))

    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("tokenizer", "factor"),
    [
        ({"model": {"type": "BPE", "byte_fallback": True}, "normalizer": None}, 1),
        ({"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"}, "normalizer": {"type": "NFC"}}, 4),
        ({"model": {"type": "BPE", "unk_token": "?", "fuse_unk": True}}, None),
        ({"model": {"type": "BPE"}}, None),
        ({"model": {"type": "Unigram"}}, None),
        ({"model": {"type": "WordPiece"}}, None),
        ({"model": {"type": "BPE", "byte_fallback": True}, "normalizer": {"type": "StripAccents"}}, None),
        (
            {
                "model": {"type": "BPE", "byte_fallback": True},
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [
                        {"type": "Prepend", "prepend": "_"},
                        {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
                    ],
                },
            },
            1,
        ),
        (
            {
                "model": {"type": "BPE", "byte_fallback": True},
                "normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": "_"},
            },
            None,
        ),
    ],
)
def test_how_much_a_tokenizer_may_shrink_a_text_is_known_or_not_assumed(tokenizer: Any, factor: int | None) -> None:
    assert may_shrink(tokenizer) == factor


def test_a_chat_beyond_the_context_is_refused_by_naming_messages(stepper: TextStepper) -> None:
    (made,), _ = run(stepper, [Arrival(chat("\u4e16" * 2000))])

    assert isinstance(made.error, InvalidRequest)
    assert "2048" in made.error.message
    assert (made.error.code, made.error.param) == ("context_length_exceeded", "messages")


def test_a_token_that_the_model_has_not_is_refused_by_naming_it(stepper: TextStepper) -> None:
    (made,), _ = run(stepper, [Arrival(chat("Hello", logit_bias={"99999": 1}))])

    assert isinstance(made.error, InvalidRequest)
    assert "99999" in made.error.message
    assert made.error.param == "logit_bias"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 999_983},
        {"properties": {f"p{i}": {"type": "integer", "multipleOf": 9000 + i} for i in range(30)}},
        {"allOf": [{"type": "string", "pattern": f"[a-z]{{{i}}}.*x"} for i in range(1, 30)]},
        {
            "anyOf": [{"pattern": f"[a-z]{{{i}}}.*x", "$ref": "#/$defs/x"} for i in range(1, 30)],
            "$defs": {"x": {"type": "string", "pattern": "y"}},
        },
        {"properties": {f"p{i}": {"type": "string"} for i in range(501)}},
    ],
)
def test_a_schema_that_would_keep_the_others_waiting_is_refused(stepper: TextStepper, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "bomb", "schema": schema}}
    (made,), _ = run(stepper, [Arrival(chat("x", response_format=wanted))])

    assert isinstance(made.error, InvalidRequest)
    assert made.error.param == "response_format"


def test_a_tool_whose_arguments_would_keep_the_others_waiting_is_refused(stepper: TextStepper) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "integer", "multipleOf": 999_983}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    (made,), _ = run(stepper, [Arrival(chat("x", tools=[tool], tool_choice="required"))])

    assert isinstance(made.error, InvalidRequest)
    assert made.error.param == "tools"


def resized(data_dir: Path, folder: Path, by: int) -> int:
    """Copy the model with so many more scores than its tokenizer has tokens; return how many it has now."""
    shutil.copytree(data_dir / "tiny" / "text", folder / "tiny" / "text")
    network = AutoModelForCausalLM.from_pretrained(folder / "tiny" / "text")
    size = network.config.vocab_size + by
    network.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        network.get_output_embeddings().weight[network.config.vocab_size - by :] *= 30  # what is padding is likely
    network.save_pretrained(folder / "tiny" / "text")
    return int(size)


def test_what_a_model_is_padded_with_is_no_token(worker_settings: Settings, data_dir: Path, tmp_path: Path) -> None:
    size = resized(data_dir, tmp_path, 40)
    padded = TextStepper(MODEL, worker_settings.model_copy(update={"data_dir": tmp_path}))
    tops = []
    for seed in range(5):
        asked = chat("Hello", logprobs=True, top_logprobs=20, temperature=2, max_tokens=20)
        told = tokens_of(alone(padded, asked, seed=seed))
        assert all(token.text and token.bytes for token in told)
        tops += [one for token in told for one in token.likeliest if not one.text]
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    made = alone(padded, chat("Who?", response_format=wanted, max_tokens=300))
    (refused,), _ = run(padded, [Arrival(chat("Hello", logit_bias={str(size - 5): 1}))])

    assert tops
    assert all(one.bytes is None for one in tops)
    assert set(json.loads(text_of(made))) == set(PERSON["properties"])
    assert isinstance(refused.error, InvalidRequest)
    assert refused.error.param == "logit_bias"


def test_a_model_may_have_fewer_tokens_than_its_tokenizer(
    worker_settings: Settings, llama: Llama, data_dir: Path, tmp_path: Path
) -> None:
    size = resized(data_dir, tmp_path, -30)
    cut = TextStepper(MODEL, worker_settings.model_copy(update={"data_dir": tmp_path}))
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    made = alone(cut, completion("x", max_tokens=20, **GREEDY))
    person = alone(cut, chat("x", response_format=wanted, max_tokens=300), seed=1)
    unknown = completion(llama.tokenizer.decode([size + 3]))
    (refused, mate), _ = run(cut, [Arrival(unknown), Arrival(completion("x", max_tokens=20, **GREEDY))])

    assert set(json.loads(text_of(person))) == set(PERSON["properties"])
    assert isinstance(refused.error, InvalidRequest)
    assert refused.error.param == "prompt"
    assert text_of(mate) == text_of(made)


def test_an_answer_ends_with_the_context(stepper: TextStepper, llama: Llama) -> None:
    job = completion("x " * 1000, max_tokens=100)
    left = 2048 - len(llama.cut(job))
    made = alone(stepper, completion("x " * 1000 + "x" * (left - 5), max_tokens=100))
    room = 2048 - made.made["prompt_tokens"]

    assert 0 < room < 100
    assert made.made["completion_tokens"] == room
    assert reason_of(made) == "length"


def test_a_callers_system_prompt_replaces_the_models(stepper: TextStepper) -> None:
    for role in ("system", "developer"):
        own = chat(Message(role=role, content="Say no."), "Hello", max_tokens=1)
        assert (
            alone(stepper, own).made["prompt_tokens"]
            < (alone(stepper, chat("Hello", max_tokens=1)).made["prompt_tokens"])
        )


def test_the_operators_words_come_first_and_count(stepper: TextStepper, llama: Llama) -> None:
    template = Template(system="Never say never.")
    own = chat(Message(role="system", content="Say no."), "Hello", max_tokens=1)
    for job in (own, chat("Hello", max_tokens=1)):
        written = worded(job, template)
        text = llama.tokenizer.decode(llama.cut(written))
        said = "Say no." if job is own else job.system_prompt
        assert text.index("Never say never.") < text.index(said) < text.index("Hello")
        more = len(llama.cut(written)) - len(llama.cut(job))
        assert more > 0
        assert alone(stepper, written).made["prompt_tokens"] == alone(stepper, job).made["prompt_tokens"] + more


def test_the_operators_words_surround_every_prompt_that_is_text(stepper: TextStepper) -> None:
    template = Template(prefix="<", suffix=">")
    numbers = complete(CompletionJob, CompletionRequest.model_validate({"prompt": [1, 2]}), DEFAULTS)

    assert worded(completion(["a", "b"]), template).prompt == ("<a>", "<b>")
    assert text_of(alone(stepper, worded(completion("a", echo=True, max_tokens=0), template))) == "a"
    with pytest.raises(InvalidRequest, match="operator's words"):
        stepper.cost(worded(completion("a", echo=True, logprobs=1), template))
    with pytest.raises(InvalidRequest, match="send text"):
        worded(numbers, template)


def test_the_operators_words_are_said_where_the_model_knows_no_system(llama: Llama) -> None:
    refusal = "{% if turn.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = f"{{% for turn in messages %}}{refusal}{{{{ turn.content }}}}{{% endfor %}}"
    job = worded(chat("Hello", "Again"), Template(system="Never say never."))
    text = tokenizer.decode(Prompts(tokenizer, CONTEXT).tokens(job)[0])
    assert text == f"Never say never.\n\n{job.system_prompt}\n\nHelloAgain"


def test_the_cost_is_what_the_longest_answers_may_take(stepper: TextStepper) -> None:
    assert stepper.cost(chat("Hello", max_tokens=200)) > stepper.cost(chat("Hello", max_tokens=20))
    assert stepper.cost(chat("Hello", n=2)) == 2 * stepper.cost(chat("Hello"))
    assert stepper.cost(chat("Hello", max_tokens=5000)) == stepper.cost(chat("Hello", max_tokens=9000))


def test_text_comes_in_pieces_of_whole_characters(stepper: TextStepper) -> None:
    made = alone(stepper, chat("Hello", max_tokens=60, temperature=2))
    pieces: Sequence[Piece] = made.outputs

    assert len(pieces) > 10
    assert not any("\ufffd" in piece.text for piece in pieces)
