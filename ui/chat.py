"""Text as it is written; the studio's server keeps the conversation for the browser, for the gateway keeps none."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import randrange
from typing import Any

import streamlit as st

from ui import options
from ui.errors import Problem
from ui.key import COOKIE as KEY
from ui.making import BACK, MAX_SEED, PROBLEM
from ui.session import client, explain
from ui.visitors import COOKIE as VISITOR
from ui.visitors import Conversations

CHAT, NEXT = "chat", "said_next"  # in the session's state; what comes next: words and the fields of the request


@dataclass
class Answer:
    """An answer while it comes, and what is known of it."""

    text: str = ""
    model: str = ""
    seed: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    first_seconds: float | None = None
    seconds: float = 0

    def pieces(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """Yield the text as it comes; who stops reading stops the model."""
        for headers, chunk in client().chat(fields):
            self.model, self.seed = headers.get("x-model", ""), headers.get("x-seed", "")
            self.usage = chunk.get("usage") or self.usage
            self.seconds = time.monotonic() - self.started
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if piece:
                self.first_seconds = self.first_seconds or self.seconds
                self.text += piece
                yield piece

    @property
    def facts(self) -> str:
        """By which model, with which seed, how fast."""
        first = "" if self.first_seconds is None else f" · first word after {self.first_seconds:.2f} s"
        tokens = f" · {self.usage['completion_tokens']} tokens" if "completion_tokens" in self.usage else ""
        return f"`{self.model}` · seed {self.seed}{tokens}{first} · {self.seconds:.1f} s in all"


def show() -> None:
    """Show the conversation."""
    for message in conversation():
        with st.chat_message(message["role"]):
            st.text(message["content"])
            if "facts" in message:
                st.caption(message["facts"])


def tools() -> None:
    """Offer what can be done with the conversation."""
    if conversation():
        text = "\n\n".join(f"{each['role']}: {each['content']}" for each in conversation())
        with st.container(horizontal=True):
            st.download_button("Text", text, "conversation.txt", on_click="ignore", icon=":material/download:")
            st.button("Again with another seed", on_click=take_back, icon=":material/casino:")
            st.button("Begin anew", on_click=conversation().clear, icon=":material/restart_alt:")
    st.caption("A conversation stays in this browser alone, until it is closed or the studio is started anew.")


def take_back() -> None:
    """Forget the last answer, and what was said before it, which is said again."""
    *_, question, _ = conversation()
    del conversation()[-2:]
    st.session_state[NEXT] = question["content"], {**options.chosen("text"), "seed": randrange(MAX_SEED)}


def ask(prompt: str, fields: Mapping[str, Any]) -> None:
    """Say something, and show the answer as it is written."""
    said = conversation()
    said.append({"role": "user", "content": prompt})
    with st.chat_message("user"):
        st.text(prompt)
    messages = [{"role": each["role"], "content": each["content"]} for each in said]
    answer = Answer()
    try:
        with st.chat_message("assistant"):
            write(answer, {**fields, "messages": messages})
    except Problem as problem:
        if answer.text:
            explain(problem)
        else:
            st.session_state.update({PROBLEM: problem, BACK: prompt})
    finally:  # also what was stopped midway was said
        if answer.text:
            said.append({"role": "assistant", "content": answer.text, "facts": answer.facts})
        else:
            said.pop()
    if not answer.text:
        st.rerun()


def write(answer: Answer, fields: Mapping[str, Any]) -> None:
    """Write an answer down as plain text: a model's markup is nobody's to be believed.

    Raises:
        Problem: it was refused, or broke off.
    """
    place = st.empty()
    for _ in answer.pieces(fields):
        place.text(answer.text)
    if not answer.text:
        raise Problem("The model said nothing. Ask in another way, or with another seed.")
    st.caption(answer.facts)


def conversation() -> list[dict[str, str]]:
    """What was said so far; a page that came without our cookie keeps it for itself."""
    visitor = str(st.context.cookies.get(VISITOR, ""))
    if visitor:
        return conversations().of(visitor, str(st.context.cookies.get(KEY, "")))
    found: list[dict[str, str]] = st.session_state.setdefault(CHAT, [])
    return found


@st.cache_resource
def conversations() -> Conversations:
    """All that are kept."""
    return Conversations()
