"""A gateway that plays its part towards the studio: what it answers is set by the test, what it is asked is kept."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

METHODS = ["GET", "POST", "DELETE"]


@dataclass
class Gateway:
    """Answers by method and path; an answer may be made of the query."""

    url: str = ""
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes, dict[str, str]]] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.asked.append((request.method, path, await request.body(), dict(request.headers)))
        found = self.answers.get((request.method, path))
        if callable(found) and not isinstance(found, Response):
            found = found(request.query_params)
        if isinstance(found, Response):
            return found
        if found is None:
            return refusal(404, f"there is no {path}")
        return JSONResponse(found)

    def calls(self, method: str) -> list[str]:
        return [path for asked, path, *_ in self.asked if asked == method]


def refusal(status: int, message: str, **headers: str) -> JSONResponse:
    """Say no as the gateway does."""
    return JSONResponse(
        {"error": {"message": message}}, status, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


@contextmanager
def serving() -> Iterator[Gateway]:
    gateway = Gateway()
    app = Starlette(routes=[Route("/{path:path}", gateway.answer, methods=METHODS)])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        gateway.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield gateway
        finally:
            server.should_exit = True
            thread.join()
