"""A conversation of a browser, and the answer that is written on its own thread: pages come and go; knows no page."""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Lock, Thread
from typing import Any

import httpx

from ui.errors import BROKEN, Problem

Chunks = Generator[tuple[httpx.Headers, Mapping[str, Any]], None, None]  # of an answer, each with the headers
logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # after which who watches is shown the same again: only then a page hears of a click
UNSEEN_SECONDS = 60.0  # after which an answer that no page watches any more is stopped
GONE_ON = "The conversation has gone on in another tab: here it is."
BUSY = "An answer is being written, perhaps in another tab. Wait for its end, or stop it."
NOTHING = "The model said nothing. Ask in another way, or with another seed."
STOPPED = "stopped before its end"


@dataclass
class Answer:
    """An answer while it comes, and what is known of it; whoever reads or changes it has the conversation's lock."""

    asked: Mapping[str, Any]  # the fields of the request, without the messages
    text: str = ""
    model: str = ""
    seed: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    watched: float = field(default_factory=time.monotonic)
    first_seconds: float | None = None
    seconds: float = 0
    is_over: bool = False
    is_stopped: bool = False
    problem: Problem | None = None

    def take(self, headers: httpx.Headers, chunk: Mapping[str, Any]) -> None:
        """Take in what came."""
        self.model, self.seed = headers.get("x-model", ""), headers.get("x-seed", "")
        self.usage = chunk.get("usage") or self.usage
        self.seconds = time.monotonic() - self.started
        piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        if piece:
            self.first_seconds = self.first_seconds or self.seconds
            self.text += piece

    def end(self, problem: Problem | None = None, *, is_stopped: bool = False) -> None:
        """Let no more come; who ended it first has the last word."""
        if not self.is_over:
            nothing = Problem(NOTHING) if not self.text and not is_stopped else None
            self.problem, self.is_stopped, self.is_over = problem or nothing, is_stopped, True

    def has_news(self, num_seen: int) -> bool:
        """Whether there is anything for who has seen so many characters."""
        return self.is_over or len(self.text) > num_seen

    @property
    def said(self) -> str:
        """What came, and whether that is all."""
        why = STOPPED if self.is_stopped else str(self.problem) if self.problem else ""
        return f"{self.text}\n\n[{why}]" if why else self.text

    @property
    def facts(self) -> str:
        """By which model, with which seed, how fast, and whether it is whole."""
        facts = [f"`{self.model}`", f"seed {self.seed}"] if self.model else []
        if "completion_tokens" in self.usage:
            facts.append(f"{self.usage['completion_tokens']} tokens")
        if self.first_seconds is not None:
            facts.append(f"first word after {self.first_seconds:.2f} s")
        facts.append(f"{self.seconds:.1f} s in all")
        if self.is_stopped:
            facts.append(STOPPED)
        return " · ".join(facts)


@dataclass
class Turn:
    """What was said, and what is answered."""

    words: str
    answer: Answer
    instead_of: "Turn | None" = None  # which comes back if nothing comes of this one

    @property
    def is_in_vain(self) -> bool:
        """Whether nothing came of it, so that it is as if it had not been said."""
        is_refused = self.answer.problem is not None
        is_dropped = self.answer.is_stopped and self.instead_of is not None
        return not self.answer.text and (is_refused or is_dropped)


class Conversation:
    """What was said so far. One answer is written at a time, whoever watches it and in however many tabs."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._turns: list[Turn] = []
        self._changed = Condition(Lock())

    @property
    def turns(self) -> Sequence[Turn]:
        """What was said, oldest first."""
        with self._changed:
            return tuple(self._turns)

    def ask(
        self,
        words: str,
        fields: Mapping[str, Any],
        send: Callable[[Mapping[str, Any]], Chunks],
        instead_of: Turn | None = None,
    ) -> Turn:
        """Say something; the answer is written while whoever likes looks on.

        Args:
            words: what is said.
            fields: of the request, without the messages.
            send: has an answer written to the fields and messages that it is given.
            instead_of: the last turn, whose place it takes.

        Raises:
            Problem: an answer is being written, or that is not the last turn any more.
        """
        with self._changed:
            self._check_is_quiet()
            if instead_of is not None:
                if not self._turns or self._turns[-1] is not instead_of:
                    raise Problem(GONE_ON)
                self._turns.pop()
                instead_of.instead_of = None
            said = [message for turn in self._turns for message in messages_of(turn)]
            turn = Turn(words, Answer(fields), instead_of)
            self._turns.append(turn)
        body = {**fields, "messages": [*said, {"role": "user", "content": words}]}
        Thread(target=self._write, args=(turn.answer, send, body), daemon=True).start()
        return turn

    def watch(self, turn: Turn) -> Iterator[str]:
        """Yield the answer whenever there is more of it, and now and then although there is not; until its end."""
        answer, seen = turn.answer, 0
        while True:
            with self._changed:
                answer.watched = time.monotonic()
                self._changed.wait_for(partial(answer.has_news, seen), LOOK_SECONDS)
                text, is_over, seen = answer.text, answer.is_over, len(answer.text)
            yield text
            if is_over:
                return

    def stop(self) -> None:
        """End the answer that is being written."""
        with self._changed:
            for turn in self._turns[-1:]:
                turn.answer.end(is_stopped=True)
            self._changed.notify_all()

    def take_back(self, turn: Turn) -> bool:
        """Forget a turn for that whose place it took, and say whether it could be: it has to be the last one.

        Raises:
            Problem: an answer is being written.
        """
        with self._changed:
            self._check_is_quiet()
            is_last = bool(self._turns) and self._turns[-1] is turn
            if is_last:
                self._turns[-1:] = filter(None, [turn.instead_of])
            return is_last

    def clear(self) -> None:
        """Forget all of it; what is being written ends."""
        self.stop()
        with self._changed:
            self._turns.clear()

    def _check_is_quiet(self) -> None:
        if self._turns and not self._turns[-1].answer.is_over:
            raise Problem(BUSY)

    def _write(self, answer: Answer, send: Callable[[Mapping[str, Any]], Chunks], body: Mapping[str, Any]) -> None:
        problem: Problem | None = Problem(BROKEN)
        chunks = send(body)
        try:
            for headers, chunk in chunks:
                with self._changed:
                    if time.monotonic() - answer.watched > UNSEEN_SECONDS:
                        answer.end(is_stopped=True)
                    if answer.is_over:
                        break
                    answer.take(headers, chunk)
                    self._changed.notify_all()
            problem = None
        except Problem as failure:
            problem = failure
        except Exception:
            logger.exception("an answer could not be taken in")
        finally:
            chunks.close()  # which stops the model
            with self._changed:
                answer.end(problem)
                self._changed.notify_all()


def messages_of(turn: Turn) -> Iterator[Mapping[str, str]]:
    """What the model is told of a turn; one that has no answer was never said."""
    if turn.answer.text:
        yield {"role": "user", "content": turn.words}
        yield {"role": "assistant", "content": turn.answer.text}
