"""Beginning, repeating and ending jobs from buttons: what goes wrong is said on the page that comes next."""

from collections.abc import Callable, Mapping
from random import randrange
from typing import Any

import streamlit as st

from ui.attached import Attached
from ui.bodies import EDITS, Picture
from ui.errors import Problem
from ui.session import SAID, client

MAX_SEED = 2**53
# In the session's state; CHANGED: something is no longer as the page shows it; BACK: words that were refused;
# GIVEN: those that came back last, with their task.
TASK, PROBLEM, FILES, GO, CHANGED = "task", "problem", "files", "go", "changed"
BACK, GIVEN = "back", "given_back"
BEGUN = "begun"  # the job that was begun last, until something else is looked at
MAX_FILES = 60


def begin(task: str, fields: Mapping[str, Any], picture: Picture | None = None) -> None:
    """Have something made."""

    def make() -> None:
        job_id = client().begin(task, fields, picture)
        st.session_state[BEGUN] = job_id
        if picture is not None:
            attached().keep(job_id, picture)

    attempt(make)


def lead(task: str) -> None:
    """Let the next page be the studio, at what is made of a task."""
    st.session_state[TASK] = task
    st.session_state[GO] = True


def again(job: Mapping[str, Any]) -> None:
    """Have it made again with another seed."""
    begin(job["kind"], {**job["asked"], "seed": randrange(MAX_SEED)}, attached().of(job["id"]))
    lead(job["kind"])


def go_on(output: Mapping[str, Any], task: str, fields: Callable[[], Mapping[str, Any]]) -> None:
    """Have a film or a mesh made of a picture that a job made, with the fields as they are now."""
    attempt(lambda: begin(task, fields(), Picture("picture", output["media_type"], file(output["url"]))))
    lead(task)


def look_elsewhere() -> None:
    """Let nothing play by itself any more when one comes back."""
    st.session_state.pop(BEGUN, None)


def cancel(job_id: str) -> None:
    """End a job."""
    attempt(lambda: client().cancel(job_id))


def retry(job_id: str) -> None:
    """Begin a job again."""
    attempt(lambda: client().retry(job_id))


def delete(job_id: str) -> None:
    """Delete a job with its files."""
    attempt(lambda: client().delete(job_id))


def why_unrepeatable(job: Mapping[str, Any]) -> str | None:
    """Say why it cannot be made again; of what was attached, the gateway gives nothing back."""
    if job["kind"] == "text" or len(job["steps"]) > 1:
        return "Only what was made in one step, and is no text, is made again from here."
    of_picture = job["route"] == EDITS or not job["prompt"]
    if of_picture and attached().of(job["id"]) is None:
        return "The picture that it was made of is not here any more: attach it again."
    return None


@st.cache_resource
def attached() -> Attached:
    """The pictures that were attached last, by anybody: whoever may see a job may have it made again."""
    return Attached()


def file(url: str) -> bytes:
    """A file of a job; the session remembers the last ones, which never change."""
    files = kept(FILES)
    if url not in files:
        files[url] = client().file(url)
        while len(files) > MAX_FILES:
            del files[next(iter(files))]
    found: bytes = files[url]
    return found


def kept(name: str) -> dict[str, Any]:
    """What the session remembers under a name."""
    found: dict[str, Any] = st.session_state.setdefault(name, {})
    return found


def say_on() -> None:
    """Let the next page say what this one does: it would move under a click that is under way."""
    problem = st.session_state.get(SAID)
    if problem is not None:
        st.session_state.setdefault(PROBLEM, problem)


def attempt(action: Callable[[], object]) -> None:
    """Do it; where it goes wrong, the next page says so, and what went wrong before is over."""
    for name in (PROBLEM, SAID):
        st.session_state.pop(name, None)
    st.session_state[CHANGED] = True
    try:
        action()
    except Problem as problem:
        st.session_state[PROBLEM] = problem
