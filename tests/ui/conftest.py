"""The studio's script, run without a browser over a gateway that plays its part."""

from collections.abc import Callable, Iterator

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.gateway import Gateway, serving
from ui.server import SCRIPT

LONG = 30  # seconds


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    with serving() as playing:
        monkeypatch.setenv("ATELIER_URL", playing.url)
        yield playing


@pytest.fixture
def visit(gateway: Gateway) -> Callable[[], AppTest]:
    return lambda: AppTest.from_file(str(SCRIPT), default_timeout=LONG).run()


def model(task: str, model_id: str, **fields: object) -> dict[str, object]:
    """A model as the gateway lists it."""
    return {
        "id": model_id,
        "task": task,
        "state": "loaded",
        "is_default": True,
        "licence": "MIT",
        "licence_url": "https://example.org/licence",
        "commercial_use": True,
        "defaults": {},
        **fields,
    }
