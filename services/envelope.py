"""Rewrites BentoML's own error bodies into the envelope that OpenAI clients parse."""

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.schema import envelope, explain


class EnvelopeMiddleware:
    """Passes successes on untouched; holds an error's body (small by nature) until it is whole, and rewrites it."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def send_enveloped(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await rewritten(start, body)(scope, receive, send)

        await self._app(scope, receive, send_enveloped)


def rewritten(start: Message, body: bytes) -> JSONResponse:
    """Answer with the same status and what `body` says; an envelope stays as it is."""
    headers = {name: value for name, value in Headers(raw=start["headers"]).items() if not name.startswith("content-")}
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if not is_envelope(content):
        content = translated(start["status"], content)
    return JSONResponse(content, start["status"], headers)


def is_envelope(content: Any) -> bool:
    """Whether somebody has put it into the envelope already."""
    return isinstance(content, dict) and isinstance(content.get("error"), dict)


def translated(status: int, content: Any) -> dict[str, Any]:
    """Read BentoML's forms: `{"error": …, "detail": […]}`, a list around it, or nothing that can be read."""
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict):
        content = {}
    details = content.get("detail")
    if isinstance(details, list) and details:
        message, field = explain(details[0])
        return envelope(status, message, "invalid_value", field).model_dump()
    try:
        words = HTTPStatus(status)
    except ValueError:  # 499, say, which nobody reads; an error here would leave BentoML waiting for its time-out
        words = HTTPStatus.INTERNAL_SERVER_ERROR
    return envelope(status, str(content.get("error") or words.phrase), words.name.lower()).model_dump()
