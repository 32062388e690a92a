"""`python -m ui`: the studio's server, until it is told to stop."""

from ui.server import serve
from ui.settings import Settings

if __name__ == "__main__":
    serve(Settings())
