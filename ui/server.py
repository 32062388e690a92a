"""The process around the pages: Streamlit with its settings, the page for the key, and what a player asks for."""

from pathlib import Path

from starlette.middleware import Middleware
from starlette.routing import Route
from streamlit.starlette import App

from ui.key import PATH, forget_key, keep_key, show_form
from ui.settings import Settings
from ui.sound import PATH as PLAYER
from ui.sound import player
from ui.visitors import Visitors

SCRIPT = Path(__file__).with_name("app.py")


def serve(settings: Settings) -> None:
    """Serve until told to stop."""
    routes = [*key_routes(), Route(PLAYER, player(settings.url))]
    App(SCRIPT, routes=routes, middleware=[Middleware(Visitors)]).run(
        config={
            "server.address": settings.ui_host,
            "browser.serverAddress": settings.ui_host,  # else it asks an outside server for its address
            "server.port": settings.ui_port,
            "server.headless": True,  # opens no browser
            "server.fileWatcherType": "none",
            "browser.gatherUsageStats": False,
            "theme.light.primaryColor": "#364fc7",
            "theme.light.textColor": "#111111",  # captions are paler, and still have to be read
            "theme.light.codeTextColor": "#111111",
            "theme.dark.primaryColor": "#748ffc",
            "theme.dark.codeTextColor": "#f1f3f5",
            "client.toolbarMode": "minimal",
            "client.showErrorDetails": "none",  # tracebacks are for the log
        }
    )


def key_routes() -> list[Route]:
    """Return the routes of the page on which a key is given."""
    return [
        Route(PATH, show_form, methods=["GET"]),
        Route(PATH, keep_key, methods=["POST"]),
        Route(f"{PATH}/forget", forget_key, methods=["POST"]),
    ]
