"""What happens to real processes when one of them is killed, or all are told to stop."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from cli.child import bound
from tests.cli.supervise import ROOT

LONG = 60.0  # seconds after which a test counts as hung


@dataclass(frozen=True)
class Supervised:
    """A supervisor over stand-ins."""

    process: subprocess.Popen[str]
    folder: Path

    def pid(self, name: str, besides: int | None = None) -> int:
        """The process that runs as `name`, waited for; not `besides`, which ran before it."""
        for _ in range(int(LONG / 0.05)):
            file = self.folder / name
            if file.exists() and (pid := int(file.read_text())) != besides:
                return pid
            with pytest.raises(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.05)
        raise AssertionError(f"{name} was never started")

    def line(self, part: str) -> str:
        """The next line printed that has `part` in it, waited for."""
        assert self.process.stdout
        for line in self.process.stdout:
            if part in line:
                return line
        raise AssertionError(f"the supervisor ended without a word of {part!r}")


Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    started: list[subprocess.Popen[str]] = []
    watchdogs: list[threading.Timer] = []

    def start(*names: str, grace_seconds: float = LONG, **environment: str) -> Supervised:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.supervise", str(tmp_path), *names],
            cwd=ROOT,
            env={**os.environ, "GRACE_SECONDS": str(grace_seconds), **environment},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        watchdogs.append(threading.Timer(LONG, process.kill))  # ends what waits for a line that never comes
        watchdogs[-1].start()
        return Supervised(process, tmp_path)

    yield start
    for watchdog in watchdogs:
        watchdog.cancel()
    for process in started:
        if process.poll() is None:
            process.kill()  # the guardian ends the others
        process.communicate()


def family(supervised: Supervised, num_members: int) -> list[psutil.Process]:
    """The supervisor's guardian, children and grandchildren, once they are that many."""
    parent = psutil.Process(supervised.process.pid)
    for _ in range(int(LONG / 0.05)):
        members = parent.children(recursive=True)
        if len(members) == num_members:
            return members
        with pytest.raises(subprocess.TimeoutExpired):
            supervised.process.wait(timeout=0.05)
    raise AssertionError(f"there are {len(members)} processes")


def assert_all_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=LONG)
    assert left == []


def test_a_killed_program_is_started_again(supervise: Supervise) -> None:
    supervised = supervise("plain")
    before = supervised.pid("plain")
    os.kill(before, signal.SIGKILL)
    assert "plain was ended by SIGKILL; it is started again" in supervised.line("SIGKILL")
    assert supervised.pid("plain", besides=before) != before


def test_a_program_that_lost_its_inner_process_is_started_again(supervise: Supervise) -> None:
    supervised = supervise("nested")
    outer, inner = supervised.pid("nested"), supervised.pid("plain")
    os.kill(inner, signal.SIGKILL)
    assert "nested lost its inner process; it is started again" in supervised.line("lost")
    assert supervised.pid("nested", besides=outer) != outer
    assert supervised.pid("plain", besides=inner) != inner


def test_an_orphaned_inner_process_does_not_outlive_its_program(supervise: Supervise) -> None:
    supervised = supervise("nested")
    outer, inner = supervised.pid("nested"), psutil.Process(supervised.pid("plain"))
    supervised.line("is ready")
    os.kill(outer, signal.SIGKILL)
    assert_all_gone([inner])
    assert supervised.pid("plain", besides=inner.pid) != inner.pid


def test_what_a_program_says_of_its_failure_is_passed_on(supervise: Supervise) -> None:
    status, error = 503, {"message": "the hub is away", "code": "model_unavailable"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"error": error}).encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        supervised = supervise("plain", READY_URL=f"http://127.0.0.1:{server.server_port}")
        try:
            assert "plain cannot serve: the hub is away" in supervised.line("cannot")
            status = 200
            assert "plain is ready" in supervised.line("plain")
        finally:
            server.shutdown()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_stops_everything(supervise: Supervise, number: signal.Signals) -> None:
    supervised = supervise("plain", "nested")
    members = family(supervised, num_members=4)
    supervised.line("is ready")
    supervised.process.send_signal(number)
    assert_all_gone(members)
    assert supervised.process.wait(LONG) == 0


def test_a_ctrl_c_that_reaches_the_whole_group_stops_everything(supervise: Supervise) -> None:
    supervised = supervise("plain", "nested")
    members = family(supervised, num_members=4)
    supervised.line("is ready")
    os.killpg(supervised.process.pid, signal.SIGINT)
    assert_all_gone(members)
    assert supervised.process.wait(LONG) == 0


def test_a_program_that_does_not_end_is_killed_after_its_time(supervise: Supervise) -> None:
    supervised = supervise("nested_stubborn", grace_seconds=0.1)
    supervised.pid("stubborn")
    members = family(supervised, num_members=3)
    supervised.process.send_signal(signal.SIGINT)
    assert_all_gone(members)
    assert supervised.process.wait(LONG) == 0


def test_a_second_signal_does_not_wait(supervise: Supervise) -> None:
    supervised = supervise("nested_stubborn", grace_seconds=100 * LONG)
    supervised.pid("stubborn")
    members = family(supervised, num_members=3)
    supervised.process.send_signal(signal.SIGINT)
    supervised.line("Stopping")
    supervised.process.send_signal(signal.SIGINT)
    assert_all_gone(members)
    assert supervised.process.wait(LONG) == 0


@pytest.mark.parametrize("name", ["nested", "nested_stubborn"])
def test_nothing_outlives_a_killed_supervisor(supervise: Supervise, name: str) -> None:
    supervised = supervise(name, grace_seconds=1)
    supervised.line("is ready")
    members = family(supervised, num_members=3)
    supervised.process.kill()
    assert_all_gone(members)


def test_a_program_that_cannot_start_is_given_up(supervise: Supervise) -> None:
    supervised = supervise("plain", "failing")
    line = supervised.line("gave up")
    assert "failing was not ready in 3 attempts; it exited with status 7 (log: " in line
    assert str(supervised.folder / "failing.log") in line
    assert supervised.process.wait(LONG) == 1


def test_the_sentence_with_which_a_program_refuses_is_passed_on(supervise: Supervise) -> None:
    supervised = supervise("plain", "refusing")
    assert "refusing exited with status 1: a setting is wrong; it is started again" in supervised.line("again")
    assert "it exited with status 1: a setting is wrong (log: " in supervised.line("gave up")


def test_what_a_program_prints_is_in_its_log(supervise: Supervise) -> None:
    supervised = supervise("nonsense")
    supervised.line("gave up")
    assert "KeyError: 'nonsense'" in (supervised.folder / "nonsense.log").read_text()


def test_a_log_that_grew_too_long_is_moved_aside(tmp_path: Path) -> None:
    log = tmp_path / "text.log"
    with log.open("ab") as writer:
        writer.write(b"old" * 10)
        writer.flush()
        bound(log, max_bytes=20)
        writer.write(b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "text.log.1").read_bytes() == b"old" * 10
