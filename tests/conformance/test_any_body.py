"""Random and boundary requests to every route: nothing breaks, and answers are as the OpenAPI document says."""

from pathlib import Path

import httpx
import pytest

from tests.conformance.bodies import complaints
from tests.conformance.calls import FILM
from tests.conformance.strict import Strict
from tests.live.conftest import LONG, TASKS, TOKEN, System
from tests.live.pictures import png


def check(system: System, strict: Strict, num_examples: int) -> None:
    sdk = strict.sdk()
    film = sdk.videos.create_and_poll(prompt="", input_reference=("a.png", png()), extra_body=FILM)
    ids = {"job_id": film.id, "video_id": film.id, "model_id": "tiny-sd"}
    logs = [system.data_dir / "logs" / f"{name}.log" for name in TASKS]
    before = {log: log.stat().st_size for log in logs}

    assert list(complaints(strict.url, strict.key(scopes=["admin", *TASKS]), num_examples, ids)) == []
    strict.forget_jobs()
    for log, size in before.items():
        assert "Traceback" not in since(log, size), log.name
    assert not any("Traceback" in line for line in strict.log)
    for task in TASKS:
        answer = httpx.get(f"{system.worker(task)}/readyz", headers=TOKEN, timeout=LONG)
        assert answer.status_code == 200, task


def since(log: Path, size: int) -> str:
    with log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")


def test_a_few_requests_break_nothing(system: System, lenient: Strict) -> None:
    check(system, lenient, 4)


@pytest.mark.fresh
def test_many_requests_break_nothing(system: System, lenient: Strict) -> None:
    check(system, lenient, 100)
