"""Lets in only who comes through the gateway, where the two share a token."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.errors import NotOurGateway, render
from services.schema import TOKEN_HEADER
from services.secret_files import listed
from services.settings import Settings

HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})  # health, metrics and documents; what makes something is a POST


class GatewayOnly:
    """Answers 401 to a request for work without the token, before its body is read."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`: BentoML does it when the service is made, and hence the settings are read here."""
        self._app = app
        self._tokens = [token.encode() for token in listed(Settings().internal_token)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] not in HARMLESS and not self._is_known(Headers(scope=scope)):
            error = NotOurGateway("this worker works for its gateway alone; send the request there")
            await render(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        offered = headers.get(TOKEN_HEADER, "").encode()
        return not self._tokens or any(hmac.compare_digest(offered, token) for token in self._tokens)
