"""A gateway of its own before the same workers: one that asks for keys."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.gateway.processes import running
from tests.live.conftest import LONG, MODELS_FILE, TASKS, TOKEN, System


class Strict:
    """Whoever asks needs a key."""

    def __init__(self, url: str, admin: str, log: list[str]) -> None:
        self.url = url
        self.log = log
        self.clients = ExitStack()
        self._admin = admin

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Ask as the operator."""
        headers = {"authorization": f"Bearer {self._admin}"}
        answer = httpx.request(method, f"{self.url}{path}", headers=headers, timeout=LONG, **options)
        assert answer.is_success, answer.text
        return answer.json()

    def key(self, **grant: Any) -> str:
        """Make a key."""
        return str(self.ask("POST", "/v1/keys", json={"owner": "a", **grant})["key"])

    def sdk(self, key: str = "", **options: Any) -> openai.OpenAI:
        """A client with this key, or the operator's."""
        options = {"max_retries": 0, "timeout": LONG, **options}
        return self.clients.enter_context(
            openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self._admin, **options)
        )

    def forget_jobs(self) -> None:
        """End and delete all jobs."""
        while jobs := self.ask("GET", "/v1/jobs?limit=100")["data"]:
            for job in jobs:
                self.ask("DELETE", f"/v1/jobs/{job['id']}")


@contextmanager
def strict_gateway(system: System, folder: Path, **settings: str) -> Iterator[Strict]:
    """Start one; `settings` go before its own."""
    own = {
        **{f"ATELIER_{task.upper()}_URL": system.worker(task) for task in TASKS},
        "ATELIER_INTERNAL_TOKEN": TOKEN["x-atelier-token"],
        "ATELIER_MODELS_FILE": str(MODELS_FILE),
        "ATELIER_ADMIN_KEY_FILE": str(folder / "key"),
        "ATELIER_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    with running(folder / "data", "", **{**own, **settings}) as process:
        strict = Strict(process.url, (folder / "key").read_text().strip(), process.lines)
        with strict.clients:
            yield strict
