"""Routes that are asked so often that a framework's layers would cost more than their work; knows none in particular.

FastAPI has them for its document; requests for them pass it by.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import CallerLeft, GatewayError, PayloadTooLarge, render_gateway_error, render_invalid


class DirectRoute(APIRoute):
    """A `POST` without parameters: its function takes the request as it is, and reads the body itself."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function itself."""
        return self.endpoint


class Direct:
    """Serves direct routes, and leaves all else to `app`."""

    def __init__(self, app: ASGIApp, routes: list[DirectRoute]) -> None:
        """Wrap `app`."""
        self._app = app
        self._routes = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
        except GatewayError as error:
            response = await render_gateway_error(request, error)
        except RequestValidationError as error:
            response = await render_invalid(request, error)
        await response(scope, receive, send)


def serve_directly(app: FastAPI, *routers: APIRouter) -> None:
    """Let direct routes of `routers` pass FastAPI by, and all requests those of its layers that do nothing here.

    What FastAPI needs for its other routes stays inside; our own middleware is outside of both.
    """
    routes = [route for router in routers for route in router.routes if isinstance(route, DirectRoute)]

    def build() -> ASGIApp:
        inner: ASGIApp = ExceptionMiddleware(AsyncExitStackMiddleware(app.router), handlers=app.exception_handlers)
        inner = Direct(inner, routes)
        for middleware in reversed(app.user_middleware):
            inner = middleware.cls(inner, *middleware.args, **middleware.kwargs)
        return inner

    app.build_middleware_stack = build  # type: ignore[method-assign] # a class would miss what FastAPIOffline makes


async def body_of(request: Request, max_bytes: int) -> bytes:
    """Read a body to its end.

    Raises:
        PayloadTooLarge: it has more than `max_bytes`; the rest is not read.
        CallerLeft: it ends before its end.
    """
    pieces, num_bytes = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft("the caller left")
        pieces.append(message.get("body", b""))
        num_bytes += len(pieces[-1])
        if num_bytes > max_bytes:
            raise PayloadTooLarge(f"a body of text may have {max_bytes} bytes")
        if not message.get("more_body", False):
            return b"".join(pieces)
