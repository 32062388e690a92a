"""How the gateway goes down: balancers are told first, then new work is refused, and what is under way may end."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import Restarting, render
from gateway.middleware import UnderWay

logger = logging.getLogger("atelier.gateway")

# For those who watch us go down, and for workers who say what they have made of the last requests.
ALWAYS_ANSWERED = frozenset({"/livez", "/readyz", "/metrics", "/internal/receipts"})
LOOK_SECONDS = 0.1  # between two looks at whether somebody is in a hurry


class Drain:
    """The way down of one gateway."""

    def __init__(self, under_way: UnderWay, notice_seconds: float, patience_seconds: float) -> None:
        """Begin in service.

        Args:
            under_way: the requests that are waited for.
            notice_seconds: how long all is served on while `/readyz` says 503 already.
            patience_seconds: how long what is under way may go on after that.
        """
        self._under_way = under_way
        self._notice_seconds = notice_seconds
        self._patience_seconds = patience_seconds
        self.has_begun = False
        self.refuses = False

    async def run(self, is_in_a_hurry: Callable[[], bool]) -> None:
        """Go down as far as the last request, or until somebody is in a hurry; the server does the rest."""
        self.has_begun = True
        logger.info("draining: /readyz says so, and in %.0f s new work is refused", self._notice_seconds)
        if self._notice_seconds:
            await _unless(asyncio.sleep(self._notice_seconds), is_in_a_hurry)
        self.refuses = True
        await _unless(self._under_way.end(self._patience_seconds), is_in_a_hurry)


async def _unless(wait: Coroutine[None, None, None], is_in_a_hurry: Callable[[], bool]) -> None:
    waiting = asyncio.ensure_future(wait)
    while not (waiting.done() or is_in_a_hurry()):
        await asyncio.wait({waiting}, timeout=LOOK_SECONDS)
    waiting.cancel()


class NoNewWork:
    """Answers new work with 503 once the gateway goes down."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        """Wrap `app`."""
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._drain.refuses and scope["type"] == "http" and scope["path"] not in ALWAYS_ANSWERED:
            refusal = render(Restarting("the gateway is restarting; try again in a few seconds"))
            refusal.headers["connection"] = "close"  # the next one shall find another gateway
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)
