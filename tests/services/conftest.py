"""Engines whose models do what a test tells them, applications on a port of their own, and the tiny checkpoints."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from services.engine.engine import Engine, Limits
from services.engine.events import Event
from services.engine.generation import Generation, Run, Terms
from services.engine.metrics import EngineMetrics
from services.engine.slots import Slot
from services.engine.stepper import Result, Stepper, WholeCall
from services.settings import Settings
from services.tiny.build import RECIPES, ensure

LONG = 20.0  # seconds after which something counts as hung

Script = Callable[[Run], Result]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Scripted(WholeCall):
    """A model whose requests say what it does."""

    def __init__(self) -> None:
        super().__init__(self)

    def generate(self, request: Script, seed: int, run: Run) -> Result:
        return request(run)


class Gate:
    """A place where a thread waits until the test has seen it there and lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *_: Any) -> None:
        self.reached.set()
        assert self.opened.wait(LONG)


def nothing(run: Run) -> Result:
    return Result()


def steps(count: int) -> Script:
    def script(run: Run) -> Result:
        for step in range(1, count + 1):
            run.advance(step, count)
        run.count(steps=count)
        return Result()

    return script


def until_stopped(run: Run) -> Result:
    while True:
        run.advance(1, 2)


def limits(queue_size: int = 8, memory_bytes: float = 1e9, **more: Any) -> Limits:
    return Limits(queue_size, step_seconds=LONG, memory_bytes=lambda: memory_bytes, **more)


class Bench:
    """An engine with a registry of its own."""

    def __init__(self, slots: Mapping[str, Slot], limits: Limits) -> None:
        self.registry = CollectorRegistry()
        self.engine = Engine(slots, EngineMetrics("test", self.registry), limits)

    def submit(self, script: Script = nothing, model: str | None = None, deadline: float = LONG) -> Generation:
        return self.engine.submit(script, model, None, Terms(deadline))

    async def serve(self, script: Script = nothing, model: str | None = None) -> list[Event]:
        """Run to the end, which also means: what came before is over."""
        return [event async for event in self.submit(script, model)]

    def count(self, name: str, model: str = "model", **labels: str) -> float | None:
        return self.registry.get_sample_value(f"atelier_{name}", {"modality": "test", "model": model, **labels})

    def endings(self, model: str = "model") -> dict[str, float | None]:
        names = ("complete", "left", "failed", "late")
        return {name: self.count("generations_total", model, ending=name) for name in names}

    @property
    def queue_length(self) -> float | None:
        return self.count("queue_length")


MakeBench = Callable[..., Bench]


def on_demand(make: Callable[[], Stepper[Any]] = Scripted) -> Slot:
    return Slot(make, is_preloaded=False)


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    """Build started engines, and close them."""
    made: list[Bench] = []

    def make(slots: Mapping[str, Slot] | None = None, **allowed: Any) -> Bench:
        bench = Bench(slots or {"model": on_demand()}, limits(**allowed))
        bench.engine.start()
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.engine.close()


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


class Server(uvicorn.Server):
    """Runs an application in a thread, on a free port."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, port=0, ws="none", access_log=False, log_config=None))
        self.is_up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    def run(self, sockets: Any = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.is_up.set()  # whoever waits shall see that it is not


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve `app`; give its URL. `httpx.ASGITransport` would hold a stream back until its end."""
    server = Server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.is_up.wait(LONG)
        assert server.started, "the server died while starting"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(LONG)
        assert not thread.is_alive()


@contextmanager
def undisturbed_logging() -> Iterator[None]:
    """Make a worker that sends our log where BentoML's goes, and leave the log as it was."""
    logger = logging.getLogger("atelier")
    before = (logger.level, logger.handlers, logger.propagate)
    yield
    logger.level, logger.handlers, logger.propagate = before


def connect(url: str) -> AbstractContextManager[socket.socket]:
    """Open a connection that a test can leave whenever it likes."""
    address = urlsplit(url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=LONG)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with all tiny checkpoints in it."""
    folder = tmp_path_factory.mktemp("data")
    for recipe in RECIPES:
        ensure(recipe, folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def worker_settings(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir)
