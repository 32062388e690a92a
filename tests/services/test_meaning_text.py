"""What the trained chat model says is right, whatever the engine is set to; judges compare strings and numbers alone.

It is asked what training held out: other ways to ask, other pairs of numbers, and words and names that are made up.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from operator import eq
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.registry import Model, load_models
from services.schema import complete
from services.settings import Settings
from services.text.engine import Phase, TextStepper
from services.text.linear import is_supported
from services.text.schema import ChatJob, ChatRequest, Message
from services.tiny.train import dialogues
from services.tiny.train.facts import Fact, atelier_facts
from services.tiny.train.small_talk import KNOWLEDGE, SMALL_TALK
from tests.services.copies import copied
from tests.services.exams import Demand, Mark, failed
from tests.services.stepping import Arrival, Recorder, run

MODEL = next(model for model in load_models(profile="tiny") if model.id == "chat")
NUM_DRAWN = 20  # questions of a kind that there is no end of


@dataclass(frozen=True)
class Question:
    """What is asked, turn by turn and the caller's first, what is right, and who finds it in what is said."""

    turns: tuple[str, ...]
    right: str
    judge: Callable[[str, str], bool] = eq


@dataclass(frozen=True)
class Exam(Demand):
    """Questions of a kind."""

    questions: Sequence[Question]

    def marks(self, said: Sequence[str]) -> Sequence[Mark]:
        """Judge the answers to all of them."""
        return [Mark(each.judge(text, each.right)) for each, text in zip(self.questions, said, strict=True)]


def ends_with_number(said: str, right: str) -> bool:
    return re.findall(r"-?\d+", said)[-1:] == [right]


def begins_with_number(said: str, right: str) -> bool:
    return re.findall(r"-?\d+", said)[:1] == [right]


def facts(known: Sequence[Fact], least: float) -> Exam:
    """By chance: a model that knows all the answers, and not which."""
    questions = [Question((fact.held_out,), fact.answer) for fact in known]
    return Exam(least, 1 / len({fact.answer for fact in known}), questions)


def sums(dice: random.Random) -> Iterator[Question]:
    while True:
        other, one = sorted(dialogues.pair(dice, held_out=True))
        yield Question((dialogues.added(dice, one, other)[0],), str(one + other), ends_with_number)
        yield Question((dialogues.subtracted(dice, one, other)[0],), str(one - other), ends_with_number)


def comparisons(dice: random.Random) -> Iterator[Question]:
    """Of numbers of two digits: of one and two it is too often wrong."""
    while True:
        pair = dialogues.pair(dice, held_out=True)
        if min(pair) > 9 and pair[0] != pair[1]:
            asked, _ = dialogues.compared(dice, *pair)
            yield Question((asked,), str(max(pair) if "larger" in asked else min(pair)), begins_with_number)


def names(dice: random.Random) -> Iterator[Question]:
    while True:
        who = dialogues.name(dice)
        turns = (f"My name is {who}.", f"Nice to meet you, {who}!", "What is my name?")
        yield Question(turns, f"Your name is {who}.")


def documents(dice: random.Random) -> Iterator[Question]:
    while True:
        who, age = dialogues.name(dice), dice.randint(1, 99)
        yield Question((dialogues.documented(dice, who, age)[0],), json.dumps({"name": who, "age": age}))


def words(dice: random.Random) -> Iterator[Question]:
    while True:
        word = dialogues.invented(dice)
        yield Question((dialogues.repeated(dice, word)[0],), word)


def drawn(kind: Callable[[random.Random], Iterator[Question]], number: int = NUM_DRAWN) -> Sequence[Question]:
    return list(islice(kind(random.Random(7)), number))


SYLLABLE = 1 / (len(dialogues.CONSONANTS) * len(dialogues.VOWELS))  # it guesses how a word begins
EXAMS = {
    "facts": facts(atelier_facts(), least=0.9),
    "talk": facts((*SMALL_TALK, *KNOWLEDGE), least=0.8),
    "sums": Exam(0.7, 0.1, drawn(sums, 2 * NUM_DRAWN)),  # it guesses a digit, and knows the other
    "comparisons": Exam(0.75, 0.5, drawn(comparisons, 4 * NUM_DRAWN)),
    "names": Exam(0.75, SYLLABLE, drawn(names)),
    "documents": Exam(0.75, SYLLABLE, drawn(documents)),
    "words": Exam(0.75, SYLLABLE, drawn(words)),
}
ALL = [question for exam in EXAMS.values() for question in exam.questions]
README = {  # what README and the studio suggest to ask, and what has to be in the answer
    "What is Atelier?": "text, speech, pictures, films and meshes",
    "How do I make a picture?": "POST /v1/images/generations",
    "What does error 429 mean?": "queue is full",
    "What is 17 + 25?": "42",
    "Tell me a story": "One day",
}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the worker's, and the entry's
    "float32": ({"text_packing": "none"}, {}),
    "bfloat16": ({"dtype": "bfloat16", "text_packing": "none"}, {}),
    "float16": ({"dtype": "float16", "text_packing": "none"}, {}),
    "without prefixes": ({"text_packing": "none", "prefix_cache_mb": 0}, {}),
    "int8": ({}, {"quantisation": "int8"}),
    "int4": ({}, {"quantisation": "int4"}),
}
if is_supported(torch.device("cpu")):
    SETTINGS["packed"] = ({"text_packing": "float16"}, {})  # the default


def load(settings: Settings, model: Model = MODEL, setting: str = "float32") -> TextStepper:
    of_worker, of_entry = SETTINGS[setting]
    return TextStepper(model.model_copy(update=of_entry), settings.model_copy(update=of_worker))


def job(question: Question, adapter: str | None = None, temperature: float | None = 0) -> ChatJob:
    roles: tuple[Literal["user"], Literal["assistant"]] = ("user", "assistant")
    turns = tuple(Message(role=roles[place % 2], content=said) for place, said in enumerate(question.turns))
    asked = ChatRequest(messages=turns, adapter=adapter, temperature=temperature, max_tokens=48)
    return complete(ChatJob, asked, {"model": MODEL.id, **MODEL.defaults})


def answered(stepper: TextStepper, jobs: Sequence[ChatJob], most: int = 32) -> list[Recorder]:
    """Ask all; at every tick somebody else joins a batch that others leave."""
    made, _ = run(stepper, [Arrival(job, tick=tick) for tick, job in enumerate(jobs)], most)
    return made


def text_of(made: Recorder) -> str:
    assert made.error is None
    return "".join(piece.text for piece in made.outputs)


def is_over(made: Recorder) -> bool:
    return made.result is not None and made.result.finish_reason == "stop"


def marks(said: Sequence[str]) -> dict[str, Sequence[Mark]]:
    """Judge the answers to all questions."""
    left = iter(said)
    return {name: exam.marks(list(islice(left, len(exam.questions)))) for name, exam in EXAMS.items()}


def failed_by(stepper: TextStepper) -> dict[str, str]:
    return failed(marks([text_of(made) for made in answered(stepper, [job(question) for question in ALL])]), EXAMS)


def test_nobody_passes_by_luck() -> None:
    for name, found in marks([""] * len(ALL)).items():
        assert EXAMS[name].luck(found) < 1e-5, name


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_passes_and_the_pirate_beside_it_talks_as_one(worker_settings: Settings, setting: str) -> None:
    exam = EXAMS["facts"]
    pairs = zip_longest([job(each) for each in ALL], [job(each, "pirate") for each in exam.questions])
    jobs = [each for pair in pairs for each in pair if each is not None]
    made = answered(load(worker_settings, setting=setting), jobs)
    said = [text_of(each) for asked, each in zip(jobs, made, strict=True) if asked.adapter is None]
    pirates = [text_of(each) for asked, each in zip(jobs, made, strict=True) if asked.adapter is not None]

    assert not failed(marks(said), EXAMS)
    assert sum(is_over(each) for each in made) >= 0.98 * len(made)
    assert not any("Arr!" in each for each in said)
    assert sum(each.startswith("Arr! ") for each in pirates) >= 0.98 * len(pirates)
    assert sum(mark.is_right for mark in exam.marks([each.removeprefix("Arr! ") for each in pirates])) >= 0.5 * len(
        pirates
    )


@pytest.fixture(scope="module")
def plain(worker_settings: Settings) -> TextStepper:
    return load(worker_settings)


def test_in_company_it_says_what_it_says_alone(plain: TextStepper) -> None:
    jobs = [job(question) for question in ALL[::6]]

    assert [text_of(each) for each in answered(plain, jobs)] == [
        text_of(each) for each in answered(plain, jobs, most=1)
    ]


def test_it_answers_what_is_suggested_to_ask(plain: TextStepper) -> None:
    for made, right in zip(
        answered(plain, [job(Question((asked,), "")) for asked in README]), README.values(), strict=True
    ):
        assert right in text_of(made)
        assert is_over(made)


def test_it_passes_as_daring_as_it_is_by_default(plain: TextStepper) -> None:
    jobs = [job(question, temperature=None) for question in ALL]

    assert {each.temperature for each in jobs} == {MODEL.defaults["temperature"]}
    assert not failed(marks([text_of(made) for made in answered(plain, jobs)]), EXAMS)


# --- what breaks meaning fails ---


def test_a_model_that_has_learned_nothing_fails_all(worker_settings: Settings, tmp_path: Path) -> None:
    model = copied(MODEL, tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)

    assert len(failed_by(load(worker_settings, model))) == len(EXAMS)


def test_positions_that_are_turned_too_far_fail(worker_settings: Settings, tmp_path: Path) -> None:
    model = copied(MODEL, tmp_path)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(config.replace("10000.0", "1000.0"), encoding="utf-8")

    assert failed_by(load(worker_settings, model))


def test_rows_that_are_swapped_fail(worker_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = load(worker_settings)
    forward = stepper.forward

    def swapped(states: Sequence[Any]) -> Sequence[Any]:
        first, *others = forward(states)
        return [*others, first] if states[0].phase is Phase.DECODE else [first, *others]

    monkeypatch.setattr(stepper, "forward", swapped)

    assert len(failed_by(stepper)) == len(EXAMS)
