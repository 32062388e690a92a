"""A conversation whose answer is written on its own thread, watched by pages that come and go."""

from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from threading import Event
from typing import Any

import httpx
import pytest

from ui import talk
from ui.errors import BROKEN, Problem
from ui.talk import Chunks, Conversation, Turn

HEADERS = httpx.Headers({"x-model": "chat", "x-seed": "7"})
PATIENCE = 10.0  # seconds


class Model:
    """Says what the test has it say, piece by piece."""

    def __init__(self) -> None:
        self.pieces = SimpleQueue[str | Problem | None]()
        self.bodies: list[Mapping[str, Any]] = []
        self.is_closed = Event()

    def send(self, body: Mapping[str, Any]) -> Chunks:
        self.bodies.append(body)
        self.is_closed.clear()
        try:
            while (piece := self.pieces.get(timeout=PATIENCE)) is not None:
                if isinstance(piece, Problem):
                    raise piece
                yield HEADERS, {"choices": [{"delta": {"content": piece}}]}
        finally:
            self.is_closed.set()

    def say(self, *pieces: str | Problem | None) -> None:
        for piece in pieces:
            self.pieces.put(piece)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def said() -> Conversation:
    return Conversation()


def written(said: Conversation, turn: Turn) -> str:
    """Watch it to its end, as a page does."""
    *_, text = said.watch(turn)
    return text


def messages(model: Model) -> Sequence[Mapping[str, str]]:
    found: Sequence[Mapping[str, str]] = model.bodies[-1]["messages"]
    return found


def test_an_answer_goes_on_when_a_page_is_left_and_another_sees_it_all(said: Conversation, model: Model) -> None:
    turn = said.ask("hello", {"model": "chat"}, model.send)
    model.say("good")
    page = said.watch(turn)
    assert next(text for text in page if text) == "good"
    page.close()  # type: ignore[attr-defined]
    model.say(" day", None)

    assert written(said, said.turns[-1]) == "good day"
    assert said.turns[-1].answer.facts.startswith("`chat` · seed 7 · first word after")
    assert not said.turns[-1].answer.is_stopped


def test_what_was_stopped_says_so_and_the_model_is_left(said: Conversation, model: Model) -> None:
    turn = said.ask("hello", {}, model.send)
    model.say("good")
    assert next(text for text in said.watch(turn) if text) == "good"
    said.stop()

    assert written(said, turn) == "good"
    assert turn.answer.facts.endswith(talk.STOPPED)
    assert turn.answer.said == f"good\n\n[{talk.STOPPED}]"
    model.say(" day")
    assert model.is_closed.wait(PATIENCE)
    assert turn.answer.text == "good"


def test_an_answer_that_nobody_watches_is_stopped(
    said: Conversation, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "UNSEEN_SECONDS", -1.0)
    turn = said.ask("hello", {}, model.send)
    model.say("good")

    assert model.is_closed.wait(PATIENCE)
    assert written(said, turn) == ""
    assert turn.answer.is_stopped


def test_two_tabs_do_not_write_at_once(said: Conversation, model: Model) -> None:
    turn = said.ask("hello", {}, model.send)
    for act in (lambda: said.ask("me too", {}, model.send), lambda: said.take_back(turn)):
        with pytest.raises(Problem, match="An answer is being written"):
            act()
    model.say("good", None)
    assert written(said, turn) == "good"

    assert [each.words for each in said.turns] == ["hello"]
    assert said.take_back(turn)
    assert not said.take_back(turn)


def test_what_is_forgotten_while_it_is_written_stays_forgotten(said: Conversation, model: Model) -> None:
    said.ask("hello", {}, model.send)
    model.say("good")
    said.clear()
    model.say("day", None)
    assert model.is_closed.wait(PATIENCE)
    assert not said.turns

    model.pieces = SimpleQueue()
    turn = said.ask("again", {}, model.send)
    model.say("yes", None)
    assert written(said, turn) == "yes"
    assert messages(model) == [{"role": "user", "content": "again"}]


def test_an_answer_that_breaks_off_keeps_what_came_and_why(said: Conversation, model: Model) -> None:
    turn = said.ask("hello", {}, model.send)
    model.say("good", Problem("The worker died."))

    assert written(said, turn) == "good"
    assert str(turn.answer.problem) == "The worker died."


def test_an_answer_that_ends_in_an_error_of_ours_never_looks_whole(said: Conversation) -> None:
    def send(body: Mapping[str, Any]) -> Chunks:
        yield HEADERS, {"choices": [{"delta": {"content": "good"}}]}
        yield HEADERS, {}

    turn = said.ask("hello", {}, send)

    assert written(said, turn) == "good"
    assert str(turn.answer.problem) == BROKEN


def test_an_answer_comes_back_when_nothing_comes_in_its_place(said: Conversation, model: Model) -> None:
    model.say("once", None)
    first = said.ask("a story", {}, model.send)
    written(said, first)
    model.say(Problem("no"))
    second = said.ask("a story", {}, model.send, first)
    written(said, second)
    assert said.turns == (second,)
    assert said.take_back(second)

    assert [turn.answer.text for turn in said.turns] == ["once"]
    with pytest.raises(Problem, match="gone on in another tab"):
        said.ask("a story", {}, model.send, second)


def test_what_has_no_answer_was_never_said(said: Conversation, model: Model) -> None:
    failed = said.ask("hello", {}, model.send)
    model.say(None)
    assert written(said, failed) == ""
    assert str(failed.answer.problem) == talk.NOTHING

    turn = said.ask("and now?", {}, model.send)
    model.say("yes", None)
    assert written(said, turn) == "yes"
    assert messages(model) == [{"role": "user", "content": "and now?"}]
    assert not said.take_back(failed)  # it is not the last one any more
