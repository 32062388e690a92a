"""All that was made, newest first, with a search; the gateway keeps it, not the page."""

from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import islice
from typing import Any

import streamlit as st

from ui import cards, making, media, models
from ui.client import Client
from ui.session import client, told

COLUMNS = 3
PAGE = 100  # jobs that the gateway is asked for at once
FIRST = 12  # that are shown before more are asked for


def show() -> None:
    """Show the page."""
    st.title("Gallery")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input("Search", placeholder="Words of the prompt, a model, a seed", icon=":material/search:")
        kind = st.selectbox("What", models.TASKS, None, format_func=models.TASKS.__getitem__, placeholder="Everything")
    with told():
        num_wanted = st.session_state.get("shown", FIRST)
        found = list(islice(matching(history(client(), kind), words), num_wanted + 1))
        shown = found[:num_wanted]
        there_is_more = len(found) > num_wanted
        how_many = f"The newest {len(shown)}" if there_is_more else f"{len(shown)} found"
        st.caption(how_many if found else "Nothing is here yet, or nothing fits the search.")
        columns = st.columns(COLUMNS)
        for number, job in enumerate(shown):
            with columns[number % COLUMNS], cards.place(f"found-{number}", job["id"]):
                tile(job)
        if there_is_more:
            st.button("Show more", on_click=st.session_state.update, kwargs={"shown": len(shown) + FIRST})


def history(asked: Client, kind: str | None) -> Iterator[Mapping[str, Any]]:
    """Yield what was made, newest first, looked up as far back as somebody reads on."""
    kinds = models.TASKS if kind is None else (kind,)
    return merge(*(made(asked, each) for each in kinds), key=lambda job: -job["created_at"])


def made(asked: Client, kind: str) -> Iterator[Mapping[str, Any]]:
    """Yield what was made of a kind, newest first."""
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        page = asked.jobs(kind, PAGE, page["last_id"], "completed")
        yield from page["data"]


def matching(jobs: Iterator[Mapping[str, Any]], words: str) -> Iterator[Mapping[str, Any]]:
    """Yield what has all the words somewhere in its description."""
    wanted = words.casefold().split()
    for job in jobs:
        told_of = f"{job['prompt'] or ''} {job['model'] or ''} {job['seed']} {job['id']}".casefold()
        if all(word in told_of for word in wanted):
            yield job


def tile(job: Mapping[str, Any]) -> None:
    """Show a job small."""
    with st.container(border=True, key=f"tile-{job['id']}"):
        media.still(job, making.file)
        st.text(media.title_of(job))
        st.caption(cards.facts(job))
        with st.container(horizontal=True):
            if st.button("View", key=f"view-{job['id']}", icon=":material/open_in_full:"):
                opened(job)
            st.button("Delete", key=f"gone-{job['id']}", on_click=making.delete, args=(job["id"],))


@st.dialog("Made before", width="large")
def opened(job: Mapping[str, Any]) -> None:
    """Show a job large, with all that can be done with it; once something was, the whole page is shown anew."""
    if st.session_state.pop(making.CHANGED, False):
        st.rerun()
    cards.card(job)
