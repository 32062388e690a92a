"""The studio's script, run without a browser over a gateway that plays its part."""

from collections.abc import Callable, Iterator, Mapping

import pytest
from streamlit.runtime.context import ContextProxy
from streamlit.testing.v1 import AppTest

from tests.ui.gateway import Gateway, serving
from ui.server import SCRIPT

LONG = 30  # seconds


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    with serving() as playing:
        monkeypatch.setenv("ATELIER_URL", playing.url)
        monkeypatch.setattr(ContextProxy, "cookies", {})  # AppTest has mocks there, others at each run
        monkeypatch.setattr(ContextProxy, "url", "http://studio.example/")
        yield playing


@pytest.fixture
def visit(gateway: Gateway) -> Callable[..., AppTest]:
    def look(page: str = "", **state: object) -> AppTest:
        """Look at the whole, or at one page alone; `state` is what the session knows already."""
        if page:
            app = AppTest.from_string(f"from ui import {page}\n{page}.show()", default_timeout=LONG)
        else:
            app = AppTest.from_file(str(SCRIPT), default_timeout=LONG)
        for name, value in state.items():
            app.session_state[name] = value
        return app.run()

    return look


def job(kind: str, job_id: str = "job_1", **fields: object) -> dict[str, object]:
    """A job as the gateway shows it."""
    return {
        "id": job_id,
        "status": "completed",
        "kind": kind,
        "route": "/v1/images/generations",
        "prompt": "a boat",
        "asked": {"prompt": "a boat", "seed": 5},
        "model": "a-model",
        "seed": 5,
        "progress": 0,
        "steps": [kind],
        "attempts": 1,
        "step_progress": {},
        "queue_position": None,
        "eta_seconds": None,
        "created_at": 1_700_000_000,
        "queue_seconds": 0.0,
        "run_seconds": 1.5,
        "usage": {},
        "error": None,
        "outputs": [],
        **fields,
    }


def page_of(*jobs: dict[str, object]) -> dict[str, object]:
    """A page of them."""
    return {"data": list(jobs), "last_id": None, "has_more": False}


def listing(*jobs: dict[str, object]) -> Callable[[Mapping[str, str]], dict[str, object]]:
    """Answer as the gateway lists them, a page at a time."""

    def answer(query: Mapping[str, str]) -> dict[str, object]:
        wanted = {name: query[name] for name in ("kind", "status") if name in query}
        found = [each for each in jobs if wanted.items() <= each.items()]
        start = next((place for place, each in enumerate(found, 1) if each["id"] == query.get("after")), 0)
        page = found[start : start + int(query["limit"])]
        there_is_more = start + len(page) < len(found)
        return {"data": page, "last_id": page[-1]["id"] if page else None, "has_more": there_is_more}

    return answer


def model(task: str, model_id: str, **fields: object) -> dict[str, object]:
    """A model as the gateway lists it."""
    return {
        "id": model_id,
        "task": task,
        "state": "ready",
        "is_default": True,
        "licence": "MIT",
        "licence_url": "https://example.org/licence",
        "commercial_use": True,
        "defaults": {},
        "examples": [],
        "adapters": [],
        "input_modalities": ["text"],
        "owned_by": "atelier",
        **fields,
    }
