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
MAX_RETIRED = 10_000  # keys
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

        async def welcoming(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    secure = "; Secure" if scope["scheme"] == "https" else ""
                    cookie = f"{COOKIE}={token_urlsafe(24)}; HttpOnly; Path=/; SameSite=Strict{secure}"
                    headers.append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, welcoming)


def cookies_of(scope: Scope) -> SimpleCookie:
    """Read a request's cookies; what cannot be read is none."""
    try:
        return SimpleCookie(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return SimpleCookie()


class Retired:
    """The keys that browsers have given up: a page that is open has the cookies with which it was opened."""

    def __init__(self) -> None:
        """Begin with none."""
        self._retired: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._lock = Lock()

    def add(self, visitor: str, key: str) -> None:
        """Let no page of a browser use a key any more."""
        with self._lock:
            self._retired[named(visitor, key)] = None
            while len(self._retired) > MAX_RETIRED:
                self._retired.popitem(last=False)

    def discard(self, visitor: str, key: str) -> None:
        """Let a browser use a key again."""
        with self._lock:
            self._retired.pop(named(visitor, key), None)

    def has(self, visitor: str, key: str) -> bool:
        """Whether a browser has given a key up."""
        with self._lock:
            return named(visitor, key) in self._retired


RETIRED = Retired()


def named(visitor: str, key: str) -> tuple[str, bytes]:
    """A browser with a key; the key itself is not kept."""
    return visitor, sha256(key.encode()).digest()


class Conversations:
    """What was said in each browser, with each key; in memory, and so at most as long as this process lives."""

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: OrderedDict[tuple[str, bytes], Conversation] = OrderedDict()
        self._lock = Lock()

    def of(self, visitor: str, key: str) -> Conversation:
        """What was said so far by a browser with a key, to go on with."""
        name = named(visitor, key)
        with self._lock:
            found = self._kept.setdefault(name, Conversation())
            self._kept.move_to_end(name)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found
