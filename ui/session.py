"""Who looks at the page, and what is said when something goes wrong; knows no page."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import streamlit as st

from ui.client import PATIENCE, Client
from ui.errors import KeyProblem, Problem
from ui.key import COOKIE, PATH
from ui.settings import Settings
from ui.visitors import COOKIE as VISITOR
from ui.visitors import RETIRED

SAID = "problem_said"  # in the session's state: the problem that the page shows, until it is drawn anew


@st.cache_resource
def connections() -> httpx.Client:
    """The connections to the gateway, which all sessions share: they hold no key and no cookie."""
    return httpx.Client(timeout=PATIENCE, trust_env=False)


def client() -> Client:
    """The gateway, asked with the key of this browser's cookie, if there is one that it has not given up since."""
    return asking()()


def asking() -> Callable[[], Client]:
    """What returns `client` also later, where no cookie is to be seen."""
    visitor, key = (str(st.context.cookies.get(name, "")) for name in (VISITOR, COOKIE))
    http, url = connections(), Settings().url
    return lambda: Client(http, url, "" if RETIRED.has(visitor, key) else key)


@contextmanager
def told() -> Iterator[None]:
    """Say what goes wrong inside, where it would have been shown, unless the page says so already."""
    try:
        yield
    except Problem as problem:
        if str(problem) != str(st.session_state.get(SAID)):
            explain(problem)


def explain(problem: Problem) -> None:
    """Say what went wrong."""
    st.error(str(problem), icon=":material/error:")
    if isinstance(problem, KeyProblem):
        st.link_button("Give a key", PATH, icon=":material/key:")
