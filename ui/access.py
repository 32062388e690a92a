"""The page that says whether a key is given; the key itself is on no page."""

import streamlit as st

from ui.key import COOKIE, PATH
from ui.session import client, told


def show() -> None:
    """Show the page."""
    st.title("Key")
    if COOKIE in st.context.cookies:
        st.write("This browser has a key, in a cookie that no page can read. It is sent with all that you ask for.")
    else:
        st.write("This browser has no key. Where the gateway wants none, none is needed.")
    st.link_button("Give, change or forget the key", PATH, icon=":material/key:")
    with told():
        tasks = sorted({model["task"] for model in client().models()})
        st.success(f"The gateway lets you ask for: {', '.join(tasks) or 'nothing'}.", icon=":material/check_circle:")
