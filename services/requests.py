"""What every request to a worker begins with: the gateway's id for it, and the trace that it belongs to."""

from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.logs import request_id
from services.tracing import ServerSpans


class Correlation:
    """Takes over what the gateway says, for the log lines and spans of this request."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = ServerSpans(app, trace.get_tracer("atelier.worker"), trusts_callers=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, in a task of its own."""
        if scope["type"] == "http":
            request_id.set(Headers(scope=scope).get("x-request-id", ""))
        await self._app(scope, receive, send)
