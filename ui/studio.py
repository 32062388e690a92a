"""The studio: choose a modality and a model, say or attach something, and see it made."""

from collections.abc import Mapping
from random import randrange
from typing import Any

import streamlit as st

from ui import cards, chat, making, models, options
from ui.bodies import Picture
from ui.client import Client
from ui.session import client, told

FIRST = "text"
NUM_JOBS = 5
PLACEHOLDERS = {
    "text": "Ask something",
    "image": "Describe a picture, or attach one and say what becomes of it",
    "audio": "Write what is to be said",
    "video": "Describe a film, or attach the picture that it begins with",
    "mesh": "Describe a thing, or attach a picture of it",
}
PICTURES = ["png", "jpg", "jpeg", "webp"]
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
        )
        or FIRST
    )
    with told():
        asked = client()
        there = sorted(
            (model for model in asked.models() if model["task"] == task), key=lambda model: not model["is_default"]
        )
        if not there:
            st.warning("Nothing serves this here, or your key is not for it.", icon=":material/block:")
            return
        with st.expander("Model and options", icon=":material/tune:"):
            model = models.choose(there, task)
            fields = options.choose(asked, task, model or (there[0] if len(there) == 1 else None))
        models.warn(there if model is None else [model])
        said = st.chat_input(
            PLACEHOLDERS[task],
            key=f"said-{task}",
            accept_file=task in ("image", "video", "mesh"),
            file_type=PICTURES,
        )
        if model is not None:
            fields["model"] = model["id"]
        if task == "text":
            converse(said, fields)
        else:
            make(asked, task, said, fields)


def converse(said: object, fields: Mapping[str, Any]) -> None:
    """Show the conversation, and go on with it."""
    chat.show()
    again = st.session_state.pop(chat.AGAIN, None)
    if again is not None:
        chat.ask(again, {**fields, "seed": randrange(making.MAX_SEED)})
    elif isinstance(said, str):
        chat.ask(said, fields)
    chat.tools()


def make(asked: Client, task: str, said: Any, fields: Mapping[str, Any]) -> None:
    """Have made what was asked for, and show the newest of the modality."""
    if said:
        words, picture = read(said)
        making.begin(task, {**fields, **({SAID.get(task, "prompt"): words} if words else {})}, picture)
        st.rerun()
    jobs = asked.jobs(task, NUM_JOBS)["data"]
    if not jobs:
        st.caption("Nothing was made yet. What is made stays here, and in the gallery.")
    for job in jobs:
        cards.card(job)


def read(said: Any) -> tuple[str, Picture | None]:
    """Take the words and the picture out of what was sent."""
    if isinstance(said, str):
        return said.strip(), None
    files = [Picture(file.name, file.type, file.getvalue()) for file in said.files]
    return (said.text or "").strip(), files[0] if files else None
