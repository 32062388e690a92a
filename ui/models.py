"""The page of what can be asked for: models with their licence and state, and the workers behind them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import streamlit as st

from ui.session import client, told

TASKS = {"text": "Text", "image": "Image", "audio": "Speech", "video": "Video", "mesh": "3D"}
STATES = {
    "ready": "ready",
    "loading": "loading",
    "cold": "loads when first asked for",
    "failed": "cannot be loaded",
    "unreachable": "its worker does not answer",
    "external": "at a provider",
}
LOOK_SECONDS = 2.0  # between two looks at models that are away
BY_WHAT_IS_GIVEN = "chosen by what you give"
AWAY = {
    "failed": "The operator has to look: the reason is in the worker's log.",
    "unreachable": "It may be starting. {}",
    "loading": "{}",
}
WAITS = "What is asked of it now waits until it is there."
LATER = "Ask it in a moment."  # of a text: it is no job, which could wait


def show() -> None:
    """Show the page."""
    st.title("Models")
    with told():
        found = client().models()
        for task, name in TASKS.items():
            rows = [row_of(model) for model in found if model["task"] == task]
            if rows:
                st.subheader(name)
                st.dataframe(
                    rows, hide_index=True, column_config={"Terms": st.column_config.LinkColumn(display_text="Read")}
                )


def row_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    commercial = {True: "yes", False: "no", None: "ask the provider"}[model["commercial_use"]]
    return {
        "Model": model["id"],
        "State": STATES[model["state"]],
        "Licence": licence_of(model),
        "Commercial use": commercial,
        "Terms": model["licence_url"],
    }


def choose(there: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any] | None:
    """Let one of a task's models be chosen; None: the gateway chooses by what it is given, words or a picture.

    The list has ids alone: a choice would be forgotten with each change of its words.
    """
    models = {model["id"]: model for model in there}
    automatic = [None] if len({tuple(model["input_modalities"] or ()) for model in there}) > 1 else []
    if st.session_state.get(key) not in models:  # any more
        st.session_state.pop(key, None)
    name = st.selectbox(
        "Model",
        [*automatic, *models],
        format_func=lambda name: name or BY_WHAT_IS_GIVEN,
        key=key,
        persist_state="session",
    )
    for each in there if name is None else [models[name]]:
        st.caption(terms_of(each))
    return None if name is None else models[name]


def terms_of(model: Mapping[str, Any]) -> str:
    """How a model is, and under which licence it may be used."""
    licence = licence_of(model)
    terms = f"[{licence}]({model['licence_url']})" if model["licence_url"] else licence
    commercial = ", no commercial use" if model["commercial_use"] is False else ""
    adapters = "".join(f"; {each['name']}: {each['licence']}" for each in model["adapters"] or () if each["licence"])
    return f"{model['id']}: {STATES[model['state']]}; {terms}{commercial}{adapters}"


def licence_of(model: Mapping[str, Any]) -> str:
    """Under what it may be used, by name."""
    return str(model["licence"] or ("the provider's" if model["owned_by"] == "provider" else "none is stated"))


def warn(models: Iterable[Mapping[str, Any]]) -> None:
    """Say which of the models are away, and what that means, until they are there."""
    away = [model for model in models if model["state"] in AWAY]
    if away:
        watch(away)


@st.fragment(run_every=LOOK_SECONDS)
def watch(away: Sequence[Mapping[str, Any]]) -> None:
    """Say it, and look by itself; the page is another once something has changed."""
    with told():
        now = {model["id"]: model["state"] for model in client().models()}
        if any(now.get(model["id"]) != model["state"] for model in away):
            st.rerun()
    for model in away:
        advice = AWAY[model["state"]].format(LATER if model["task"] == "text" else WAITS)
        st.warning(f"{model['id']}: {STATES[model['state']]}. {advice}", icon=":material/hourglass:")
