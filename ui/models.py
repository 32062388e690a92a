"""The page of what can be asked for: models with their licence and state, and the workers behind them."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from ui.client import Client
from ui.session import client, told

TASKS = {"text": "Text", "image": "Image", "audio": "Speech", "video": "Video", "mesh": "3D"}
STATES = {
    "loaded": "ready",
    "loading": "loading",
    "not_loaded": "loads when first asked for",
    "failed": "cannot be loaded",
    "unreachable": "its worker does not answer",
    "external": "at a provider",
}
AWAY = {
    "failed": "The operator has to look: the reason is in the worker's log.",
    "unreachable": "It may be starting. What is asked of it now waits until it is back.",
    "loading": "What is asked of it now waits until it is loaded.",
}


def show() -> None:
    """Show the page."""
    st.title("Models")
    with told():
        found = client().models()
        for task, name in TASKS.items():
            rows = [row_of(model) for model in found if model["task"] == task]
            if rows:
                st.subheader(name)
                st.dataframe(rows, hide_index=True, column_config={"Terms": st.column_config.LinkColumn()})


def row_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    commercial = {True: "yes", False: "no", None: "ask the provider"}[model["commercial_use"]]
    return {
        "Model": model["id"],
        "State": STATES[model["state"]],
        "Licence": model["licence"] or "the provider's",
        "Commercial use": commercial,
        "Terms": model["licence_url"],
    }


def choose(asked: Client, task: str) -> Mapping[str, Any] | None:
    """Let one of a task's models be chosen, the default first; say what there is to know of it."""
    there = [model for model in asked.models() if model["task"] == task]
    if not there:
        st.warning("Your key may use no model for this, or none is served here.", icon=":material/block:")
        return None
    there.sort(key=lambda model: not model["is_default"])
    model: Mapping[str, Any] = st.selectbox("Model", there, format_func=title_of, key=f"model-{task}")
    licence = model["licence"] or "the provider's terms"
    terms = f"[{licence}]({model['licence_url']})" if model["licence_url"] else licence
    limits = "" if model["commercial_use"] is not False else ", no commercial use"
    st.caption(f"Licence: {terms}{limits}")
    if model["state"] in AWAY:
        st.warning(f"{model['id']}: {STATES[model['state']]}. {AWAY[model['state']]}", icon=":material/hourglass:")
    return model


def title_of(model: Mapping[str, Any]) -> str:
    """A model in a list."""
    return f"{model['id']} · {STATES[model['state']]}"
