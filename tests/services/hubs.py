"""A hub that plays along, and what asks it: a process of its own, as the hub's client reads its endpoint once."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.services.conftest import LONG

REPOSITORY = Path(__file__).parents[2]
REVISION = "0123456789abcdef0123456789abcdef01234567"

# Runs the steps named on its command line and prints a line of JSON for each.
PROGRAM = """
import json, resource, sys
from services.engine.assembly import load
from services.engine.progress import listener
from services.engine.weights import open_weights
from services.errors import ModelUnavailable
from services.registry import Model
from services.settings import Settings
from services.text.service import make_stepper

settings = Settings(profile="hub")
for entry, step in json.loads(sys.argv[1]):
    try:
        model = Model.model_validate(entry)
        if step == "open":
            said = str(open_weights(model, settings).folder)
        elif step == "listen":
            told = []
            listener.set(lambda progress: told.append(str(progress)))
            load(make_stepper, model, settings)
            said = "; ".join(dict.fromkeys(told))
        elif step == "fill the disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            said = step
        else:
            said = type(load(make_stepper, model, settings)).__name__
    except ModelUnavailable as error:
        said = f"{error.status}: {error.message}"
    print(json.dumps(said))
"""


class Hub:
    """A hub of one repository at one revision; remembers what it was asked for.

    Args:
        files: by path.
        repository: what it is called.
        revision: the only one that there is.
        host: address that it listens on.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        repository: str = "test/tiny",
        revision: str = REVISION,
        host: str = "127.0.0.1",
    ) -> None:
        self.files = files
        self.damaged: set[str] = set()  # of these, one byte comes otherwise
        self.withheld: set[str] = set()  # these are not to be had for now
        self.paused: dict[str, threading.Event] = {}  # of these, the second half waits
        self.hangs_up = False  # whatever it is asked for
        self.refusal: tuple[int, str] | None = None  # of everything: status, and the hub's code
        self.asked: list[str] = []
        self._repository, self._revision = repository, revision
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.url = f"http://{host}:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        if handler.command == "GET":
            self.asked.append(path)
        tree = f"/api/models/{self._repository}/tree/{self._revision}"
        name = path.removeprefix(f"/{self._repository}/resolve/{self._revision}/")
        if self.hangs_up:
            return
        if self.refusal is not None:
            self.refuse(handler, *self.refusal)
        elif path.rstrip("/") == tree:
            self.send(handler, json.dumps(self.tree()).encode(), "application/json")
        elif name in self.withheld:
            self.refuse(handler, 500)
        elif name in self.files:
            body = self.files[name]
            sent = body[:-1] + bytes([body[-1] ^ 1]) if name in self.damaged else body
            self.send(handler, sent, "application/octet-stream", digest_of(name, body), self.paused.get(name))
        else:
            is_known = path.startswith((f"/{self._repository}/", f"/api/models/{self._repository}/"))
            self.refuse(handler, 404, "RevisionNotFound" if is_known else "RepoNotFound")

    def send(
        self,
        handler: BaseHTTPRequestHandler,
        body: bytes,
        kind: str,
        digest: str = "",
        gate: threading.Event | None = None,
    ) -> None:
        handler.send_response(200)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(body)))
        handler.send_header("etag", f'"{digest}"')
        handler.send_header("x-repo-commit", self._revision)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body[: len(body) // 2])
            if gate is not None:
                gate.wait(LONG)
            handler.wfile.write(body[len(body) // 2 :])

    def refuse(self, handler: BaseHTTPRequestHandler, status: int, code: str = "") -> None:
        handler.send_response(status)
        handler.send_header("x-error-code", code)
        handler.send_header("content-length", "0")
        handler.end_headers()

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": path, "size": len(content), "oid": digest_of("", content)}
            for path, content in self.files.items()
        ]


def digest_of(name: str, content: bytes) -> str:
    """What the hub calls a file by: SHA-256 where it is large, or else git's own."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Let it answer meanwhile."""
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        thread.join(LONG)
        hub.server.server_close()


def files_of(checkpoint: Path) -> dict[str, bytes]:
    """The files of a checkpoint, by path."""
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}


def entry(**changes: Any) -> dict[str, Any]:
    source = {
        "repository": "test/tiny",
        "revision": REVISION,
        "licence": "MIT",
        "licence_url": "https://example.org/licence",
        "commercial_use": True,
        "strategy": "on_demand",
        "files": ["*.json", "model.safetensors"],
        "size_gb": 0.1,
    }
    return {"id": "tiny", "task": "text", "tiny": {"recipe": "text"}, "hub": {**source, **changes}}


def run_steps(home: Path, *steps: tuple[dict[str, Any], str], **environment: str) -> list[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(steps)],
        cwd=REPOSITORY,
        env={**ours, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=3 * LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
