"""A gateway that is told to stop: `python -m gateway`, and real signals."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.gateway.conftest import LONG, error_of
from tests.gateway.processes import Process, Worker, running

SPEECH = "/generate/audio?prompt=hello"


@pytest.fixture
def worker() -> Worker:
    return Worker()


@contextmanager
def gateway(data_dir: Path, worker: Worker, **settings: str) -> Iterator[Process]:
    with worker.serve() as url, running(data_dir, url, **settings) as process:
        yield process


def until_it_drains(process: Process) -> None:
    """Ask until it says so; the server looks for signals ten times a second."""
    for _ in range(10_000):
        if process.status_of_readyz() == "draining":
            return
    raise AssertionError("it never drains")


def test_it_says_so_first_and_serves_on(tmp_path: Path, worker: Worker) -> None:
    worker.gate.set()
    with gateway(tmp_path, worker, ATELIER_DRAIN_SECONDS="600") as process:
        assert process.status_of_readyz() == "ready"
        process.signal(signal.SIGTERM)
        until_it_drains(process)

        readiness = httpx.get(f"{process.url}/readyz", trust_env=False)
        answer = httpx.get(process.url + SPEECH, trust_env=False, timeout=LONG)

        assert (readiness.status_code, readiness.json()["workers"]) == (503, {})
        assert (answer.status_code, answer.content) == (200, b"firstsecond")
        process.signal(signal.SIGINT)  # in a hurry
        process.wait()
        assert [row["successful"] for row in process.rows() if row["endpoint"] == "/generate/audio"] == [1]


def test_new_work_is_sent_elsewhere_and_streams_end_well(tmp_path: Path, worker: Worker) -> None:
    with gateway(tmp_path, worker, ATELIER_DRAIN_PATIENCE="600") as process:
        with httpx.stream("GET", process.url + SPEECH, trust_env=False, timeout=LONG) as stream:
            chunks = stream.iter_raw()
            assert next(chunks) == b"first"
            process.signal(signal.SIGTERM)
            until_it_drains(process)
            refused = httpx.get(process.url + SPEECH, trust_env=False, timeout=LONG)

            assert (refused.status_code, error_of(refused)["code"]) == (503, "gateway_restarting")
            assert refused.headers["retry-after"] == "3"
            assert refused.headers["connection"] == "close"
            assert httpx.get(f"{process.url}/livez", trust_env=False).status_code == 200
            worker.gate.set()
            assert b"".join(chunks) == b"second"
        process.wait()
        ended = [(row["status"], row["ending"]) for row in process.rows() if row["endpoint"] == "/generate/audio"]
        assert sorted(ended) == [(200, "complete"), (503, "complete")]


def test_what_lasts_too_long_is_cut_and_still_written_down(tmp_path: Path, worker: Worker) -> None:
    with gateway(tmp_path, worker, ATELIER_DRAIN_PATIENCE="0.1") as process:
        with httpx.stream("GET", process.url + SPEECH, trust_env=False, timeout=LONG) as stream:
            chunks = stream.iter_raw()
            assert next(chunks) == b"first"
            process.signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(chunks)
        process.wait()
        assert [(row["status"], row["ending"]) for row in process.rows()] == [(200, "failed")]


def test_without_work_it_ends_at_once(tmp_path: Path, worker: Worker) -> None:
    with gateway(tmp_path, worker, ATELIER_DRAIN_PATIENCE="600") as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
