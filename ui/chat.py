"""Text as it is written; the studio's server keeps the conversation for the browser, for the gateway keeps none."""

import time
from random import randrange
from typing import Any

import streamlit as st
from streamlit.runtime import get_instance
from streamlit.runtime.scriptrunner import StopException, get_script_run_ctx

from ui import options
from ui.key import COOKIE as KEY
from ui.making import BACK, MAX_SEED, PROBLEM, attempt
from ui.session import client, explain
from ui.talk import Conversation, Turn
from ui.visitors import COOKIE as VISITOR
from ui.visitors import Conversations

CHAT = "chat"  # in the session's state
PARTING_SECONDS = 0.3  # after which a page that was left is known to be


def show() -> None:
    """Show the conversation, and what is being written as it comes."""
    said = conversation()
    for number, turn in enumerate(said.turns):
        with st.chat_message("user"):
            st.text(turn.words)
        with st.chat_message("assistant"):
            answer(said, turn, number)


def answer(said: Conversation, turn: Turn, number: int) -> None:
    """Show an answer, and what is known of it; as plain text, for a model's markup is nobody's to be believed."""
    place = st.empty()
    try:
        for text in said.watch(turn):
            place.text(text)
    except StopException:  # by the button; or the page is gone, and the answer goes on
        if is_still_here():
            said.stop()
        raise
    problem = turn.answer.problem
    if problem is not None and not turn.answer.text and said.take_back(turn) is not None:
        st.session_state.update({PROBLEM: problem, BACK: turn.words})
        st.rerun()
    if problem is not None:
        explain(problem)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(turn.answer.facts)
        with st.popover("Parameters", key=f"said-with-{number}", type="tertiary"):
            st.json({**turn.answer.asked, "model": turn.answer.model, "seed": turn.answer.seed, **turn.answer.usage})


def is_still_here() -> bool:
    """Whether the page is still open whose script is told to end."""
    time.sleep(PARTING_SECONDS)
    context = get_script_run_ctx(suppress_warning=True)
    return context is not None and get_instance().is_active_session(context.session_id)


def tools() -> None:
    """Offer what can be done with the conversation."""
    said = conversation()
    turns = said.turns
    if turns:
        text = "\n\n".join(f"user: {turn.words}\n\nassistant: {turn.answer.text}" for turn in turns)
        with st.container(horizontal=True):
            st.download_button("Text", text, "conversation.txt", on_click="ignore", icon=":material/download:")
            st.button("Again with another seed", on_click=again, icon=":material/casino:")
            st.button("Begin anew", on_click=said.clear, icon=":material/restart_alt:")
    st.caption("A conversation stays in this browser alone, until it is closed or the studio is started anew.")


def ask(words: str, fields: dict[str, Any]) -> None:
    """Say something; the page that comes next shows how it is answered."""
    asked = client()
    attempt(lambda: conversation().ask(words, fields, asked.chat))
    if PROBLEM in st.session_state:
        st.session_state[BACK] = words


def again() -> None:
    """Forget the last answer, and have another written."""

    def repeat() -> None:
        words = conversation().take_back()
        if words is not None:
            ask(words, {**options.chosen("text"), "seed": randrange(MAX_SEED)})

    attempt(repeat)


def conversation() -> Conversation:
    """What was said so far; a page that came without our cookie keeps it for itself."""
    visitor = str(st.context.cookies.get(VISITOR, ""))
    if visitor:
        return conversations().of(visitor, str(st.context.cookies.get(KEY, "")))
    found: Conversation = st.session_state.setdefault(CHAT, Conversation())
    return found


@st.cache_resource
def conversations() -> Conversations:
    """All that are kept."""
    return Conversations()
