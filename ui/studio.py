"""The studio: choose a modality and a model, say or attach something, and see it made."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from ui import cards, chat, making, models, options
from ui.bodies import Picture
from ui.client import Client
from ui.errors import Problem
from ui.key import COOKIE, PATH
from ui.session import client, told

FIRST = "text"
NUM_JOBS, MAX_JOBS = 5, 100  # that are shown of a modality
SHOWN = "num_shown"  # in the session's state, by modality
PLACEHOLDERS = {
    "text": "Ask something",
    "image": "Describe a picture, or attach one and say what becomes of it",
    "audio": "Write what is to be said",
    "video": "Describe a film, or attach the picture that it begins with",
    "mesh": "Describe a thing, or attach a picture of it",
}
NO_WORDS = "Nothing was written. Say what is to be made."
ONLY_A_PICTURE = "A picture alone is not enough. Attach it again, and say what becomes of it."
EITHER = "This is made from words or from a picture, not from both. Send one of them."
ATTACH_AGAIN = "Attach the picture again, or another one."
SAID = {"audio": "input"}  # the field that takes the words, where it is not the prompt


def show() -> None:
    """Show the page."""
    st.title("Studio")
    st.session_state.setdefault(making.TASK, FIRST)
    task = (
        st.segmented_control(
            "What to make",
            list(models.TASKS),
            format_func=models.TASKS.__getitem__,
            key=making.TASK,
            required=True,
            label_visibility="collapsed",
            persist_state="session",
        )
        or FIRST
    )
    if task != "audio":
        making.look_elsewhere()
    with told():
        asked = client()
        there = sorted(
            (model for model in asked.models() if model["task"] == task), key=lambda model: not model["is_default"]
        )
        if not there:
            st.warning("Nothing serves this here, or your key is not for it.", icon=":material/block:")
            if st.context.cookies.get(COOKIE):
                st.link_button("Give another key", PATH, icon=":material/key:")
            return
        with st.sidebar:  # a list that is open closes when what it lies in moves: nothing that is made moves this
            st.header("Model and options")
            model = models.choose(there, options.model_key(task))
            options.show(asked, task, model)
        models.warn(there if model is None else [model])
        if task == "text":
            field_for(task)
            converse(there if model is None else [model])
        else:
            with st.container():  # above what was made, newest first: at the bottom, the page would follow its end
                field_for(task)
            newest(asked, task, there if model is None else [model])


def field_for(task: str) -> None:
    """Let something be said, and perhaps a picture attached.

    Whatever is attached comes here, and the gateway says what is no picture or too large: what Streamlit refuses, it
    leaves out, and the words would go without it.
    """
    if making.BACK in st.session_state:
        words = st.session_state.pop(making.BACK)
        if st.session_state.get(making.GIVEN) == (task, words):  # a field takes nothing twice in a row
            words += " "  # nobody is sent it
        st.session_state.update({said_key(task): words, making.GIVEN: (task, words)})
    st.chat_input(
        PLACEHOLDERS[task],
        key=said_key(task),
        accept_file=task in ("image", "video", "mesh"),
        on_submit=send,
        args=(task,),
    )


def send(task: str) -> None:
    """Ask for what was just said, with the options as they were then: nothing comes between the two."""
    say(task, *read(st.session_state[said_key(task)]))


def say(task: str, words: str, picture: Picture | None = None) -> None:
    """Ask for what is said, with the options as they are."""
    fields = options.chosen(task)
    if not words and (picture is None or task == "image"):
        st.session_state[making.PROBLEM] = Problem(NO_WORDS if picture is None else ONLY_A_PICTURE)
    elif words and picture is not None and task != "image":
        st.session_state.update({making.PROBLEM: Problem(EITHER), making.BACK: words})
    elif task == "text":
        chat.ask(words, fields)
    else:
        making.begin(task, {**fields, **({SAID.get(task, "prompt"): words} if words else {})}, picture)
        give_back(words, picture)


def give_back(words: str, picture: Picture | None) -> None:
    """Give the words back if they were refused; the field takes no picture back."""
    problem = st.session_state.get(making.PROBLEM)
    if problem is None:
        return
    if words:
        st.session_state[making.BACK] = words
    if picture is not None:
        st.session_state[making.PROBLEM] = type(problem)(f"{problem} {ATTACH_AGAIN}")


def said_key(task: str) -> str:
    """Under which the session has what is written into the field."""
    return f"said-{task}"


def converse(asked: Sequence[Mapping[str, Any]]) -> None:
    """Show the conversation."""
    chat.show()
    if not chat.conversation().turns:
        offer("text", asked)
    chat.tools()


def newest(asked: Client, task: str, by: Sequence[Mapping[str, Any]]) -> None:
    """Show the newest of a modality, and whatever is not done."""
    num_wanted = making.kept(SHOWN).setdefault(task, NUM_JOBS)
    page = asked.jobs(task, num_wanted)
    open_ones = [job for state in cards.OPEN for job in asked.jobs(task, MAX_JOBS, status=state)["data"]]
    jobs = {job["id"]: job for job in (*page["data"], *open_ones)}
    if not jobs:
        st.caption("Nothing was made yet. What is made stays here, and in the gallery.")
        offer(task, by)
    for number, job in enumerate(sorted(jobs.values(), key=lambda job: -job["created_at"])):
        with cards.place(f"newest-{number}", job["id"]):
            cards.card(job)
    if page["has_more"] and num_wanted < MAX_JOBS:
        more = {task: min(num_wanted + NUM_JOBS, MAX_JOBS)}
        st.button("Show more", on_click=making.kept(SHOWN).update, args=(more,), icon=":material/expand_more:")


def offer(task: str, by: Sequence[Mapping[str, Any]]) -> None:
    """Let one begin with what the models' entries have as examples."""
    examples = dict.fromkeys(
        words for model in by if model["is_default"] or len(by) == 1 for words in model["examples"]
    )
    with st.container(horizontal=True):
        for words in examples:
            st.button(words, on_click=say, args=(task, words), icon=":material/lightbulb:")


def read(said: Any) -> tuple[str, Picture | None]:
    """Take the words and the picture out of what was sent."""
    if isinstance(said, str):
        return said.strip(), None
    files = [Picture(file.name, file.type, file.getvalue()) for file in said.files]
    return (said.text or "").strip(), files[0] if files else None
