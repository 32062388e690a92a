"""Which browser looks at the pages, and what is kept for it while this process lives; knows no page."""

from collections import OrderedDict
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from secrets import token_urlsafe
from threading import Lock

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.talk import Conversation

COOKIE = "atelier_visitor"
MAX_KEPT = 500  # conversations; who has not been here for longest goes first


class Visitors:
    """Gives each browser a name of its own in a cookie that no script can read; pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a page is answered with the cookie where it came without."""
        if scope["type"] != "http" or COOKIE in cookies_of(scope):
            await self._app(scope, receive, send)
            return

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    secure = "; Secure" if scope["scheme"] == "https" else ""
                    cookie = f"{COOKIE}={token_urlsafe(24)}; HttpOnly; Path=/; SameSite=Strict{secure}"
                    headers.append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, named)


def cookies_of(scope: Scope) -> SimpleCookie:
    """Read a request's cookies; what cannot be read is none."""
    try:
        return SimpleCookie(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return SimpleCookie()


class Conversations:
    """What was said in each browser, with each key; in memory, and so at most as long as this process lives."""

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: OrderedDict[tuple[str, bytes], Conversation] = OrderedDict()
        self._lock = Lock()

    def of(self, visitor: str, key: str) -> Conversation:
        """What was said so far by a browser with a key, to go on with; the key itself is not kept."""
        name = visitor, sha256(key.encode()).digest()
        with self._lock:
            found = self._kept.setdefault(name, Conversation())
            self._kept.move_to_end(name)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found
