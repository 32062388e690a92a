"""The script that Streamlit runs for each visitor, again at each of their clicks: the pages and what surrounds them."""

from pathlib import Path

import streamlit as st

from ui import models
from ui.key import COOKIE, PATH

ICON = Path(__file__).with_name("icon.svg")


def main() -> None:
    """Show the page that is asked for."""
    st.set_page_config(page_title="Atelier", page_icon=ICON, layout="wide")
    page = st.navigation([st.Page(models.show, title="Models", icon=":material/deployed_code:", url_path="models")])
    with st.sidebar:
        label = "Change the key" if COOKIE in st.context.cookies else "Give a key"
        st.link_button(label, PATH, icon=":material/key:", type="tertiary")
    page.run()


if __name__ == "__main__":
    main()
