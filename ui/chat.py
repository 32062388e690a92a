"""Text as it is written; the studio's server keeps the conversation for the browser, for the gateway keeps none."""

from random import randrange
from typing import Any

import streamlit as st

from ui import options
from ui.key import COOKIE as KEY
from ui.making import BACK, MAX_SEED, PROBLEM, attempt
from ui.session import client, explain
from ui.talk import Conversation, Turn
from ui.visitors import COOKIE as VISITOR
from ui.visitors import Conversations

CHAT = "chat"  # in the session's state
STAYS = """<style>
[class*="st-key-stop-"] { position: sticky; top: 4.5rem; z-index: 1; }
</style>"""  # the button that stops an answer, below the page's head while the page follows the text


def show() -> None:
    """Show the conversation, and what is being written as it comes."""
    st.html(STAYS)
    said = conversation()
    for number, turn in enumerate(said.turns):
        with st.chat_message("user"):
            st.text(turn.words)
        with st.chat_message("assistant"):
            answer(said, turn, number)


def answer(said: Conversation, turn: Turn, number: int) -> None:
    """Show an answer, and what is known of it; as plain text, for a model's markup is nobody's to be believed."""
    button, place = st.empty(), st.empty()
    if not turn.answer.is_over:
        button.button("Stop", key=f"stop-{number}", on_click=said.stop, icon=":material/stop_circle:")
    for text in said.watch(turn):  # whoever leaves meanwhile does not end it
        place.text(text)
    button.empty()
    problem = turn.answer.problem
    if turn.is_in_vain and said.take_back(turn):
        if problem is not None:
            st.session_state[PROBLEM] = problem
        if turn.instead_of is None:  # "Again" took no words out of the field
            st.session_state[BACK] = turn.words
        st.rerun()
    if problem is not None:
        explain(problem)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(turn.answer.facts)
        with st.popover("Parameters", key=f"said-with-{number}", type="tertiary"):
            st.json({**turn.answer.asked, "model": turn.answer.model, "seed": turn.answer.seed, **turn.answer.usage})


def tools() -> None:
    """Offer what can be done with the conversation."""
    said = conversation()
    turns = said.turns
    if turns:
        text = "\n\n".join(f"user: {turn.words}\n\nassistant: {turn.answer.said}" for turn in turns)
        with st.container(horizontal=True):
            st.download_button("Text", text, "conversation.txt", on_click="ignore", icon=":material/download:")
            st.button("Again with another seed", on_click=again, args=(turns[-1],), icon=":material/casino:")
            st.button("Begin anew", on_click=said.clear, icon=":material/restart_alt:")
    st.caption("A conversation stays in this browser alone, until it is closed or the studio is started anew.")


def ask(words: str, fields: dict[str, Any]) -> None:
    """Say something; the page that comes next shows how it is answered."""
    asked = client()
    attempt(lambda: conversation().ask(words, fields, asked.chat))
    if PROBLEM in st.session_state:
        st.session_state[BACK] = words


def again(turn: Turn) -> None:
    """Have another answer written in place of the last."""
    asked, fields = client(), {**options.chosen("text"), "seed": randrange(MAX_SEED)}
    attempt(lambda: conversation().ask(turn.words, fields, asked.chat, turn))


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
