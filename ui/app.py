"""The script that Streamlit runs for each visitor, again at each of their clicks: the pages and what surrounds them."""

from pathlib import Path

import streamlit as st

from ui import access, gallery, making, models, studio, usage
from ui.session import SAID, explain

ICON = Path(__file__).with_name("icon.svg")
WIDE = ("Gallery", "Usage")
KEYBOARD = Path(__file__).with_name("keyboard.html")


def main() -> None:
    """Show the page that is asked for."""
    first = st.Page(studio.show, title="Studio", default=True)
    page = st.navigation(
        [
            first,
            st.Page(gallery.show, title="Gallery", url_path="gallery"),
            st.Page(usage.show, title="Usage", url_path="usage"),
            st.Page(models.show, title="Models", url_path="models"),
            st.Page(access.show, title="Key", url_path="access"),
        ],
        position="top",
    )
    st.set_page_config(
        page_title=f"{page.title} · Atelier", page_icon=ICON, layout="wide" if page.title in WIDE else "centered"
    )
    if st.session_state.pop(making.GO, False) and page.title != first.title:
        st.switch_page(first)
    if page.title != first.title:
        making.look_elsewhere()
    with st.container(key="keyboard"):
        st.html(KEYBOARD, unsafe_allow_javascript=True)  # which is a file of ours
    st.session_state.pop(making.CHANGED, None)
    problem = st.session_state[SAID] = st.session_state.pop(making.PROBLEM, None)
    with st.container():  # also without one: what is below is not drawn elsewhere, and a field keeps the keyboard
        if problem is not None:
            explain(problem)
    page.run()


if __name__ == "__main__":
    main()
