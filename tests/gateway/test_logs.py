"""What `python -m gateway` writes to its log, and what it never does."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace

from services.logs import JsonFormatter
from tests.gateway.conftest import LONG
from tests.gateway.processes import Process, Worker, running

WORD = "swordfish"
SPEECH = f"/generate/audio?prompt={WORD}"
UPGRADE = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
DIES = {"ATELIER_OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "ATELIER_OPENAI_API_KEY": f"sk-{WORD}"}


@pytest.fixture
def worker() -> Worker:
    return Worker()


@contextmanager
def gateway(data_dir: Path, worker: Worker, **settings: str) -> Iterator[Process]:
    with worker.serve() as url, running(data_dir, url, **settings) as process:
        yield process


def ask_for_everything(process: Process, worker: Worker) -> str:
    """Requests that end well and badly, in every way that a log may tell of; gives the answers."""
    said = []

    def keep(answer: httpx.Response) -> None:
        if answer.is_error:
            said.append(answer.read().decode() + str(answer.headers))

    authorization = {"authorization": f"Bearer sk-{WORD}", "cookie": WORD}
    with httpx.Client(base_url=process.url, trust_env=False, timeout=LONG, headers=authorization) as client:
        client.event_hooks["response"].append(keep)
        worker.gate.set()
        assert client.get(SPEECH).status_code == 200
        assert client.get(f"/generate/openai/text?prompt={WORD}").status_code == 502
        assert client.get(f"/generate/image?prompt={WORD}&size={WORD}").status_code == 400
        assert client.get(f"/v1/realtime?token={WORD}", headers=UPGRADE).status_code == 404
        assert client.post("/v1/completions", json={"prompt": WORD, "n": WORD}).status_code == 400
        assert client.post("/v1/completions", json={"prompt": WORD}).status_code == 200
        assert client.post("/v1/completions", content=f'{{"prompt": "{WORD}').status_code == 400
        worker.breaks_off = True
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(SPEECH, headers={"x-request-id": "the-broken-one"})
    assert len(said) == 5
    return "".join(said)


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_prompt_and_no_key_gets_into_a_log_an_error_or_a_metric(tmp_path: Path, worker: Worker, form: str) -> None:
    with gateway(tmp_path, worker, ATELIER_LOG_FORMAT=form, **DIES) as process:
        said = ask_for_everything(process, worker)
        assert WORD not in said
        assert WORD not in httpx.get(f"{process.url}/metrics", trust_env=False, timeout=LONG).text
        process.signal(signal.SIGTERM)
        process.wait()

    log = "".join(process.lines)
    assert [line for line in process.lines if "broke off" in line and "the-broken-one" in line]
    assert WORD not in log


def test_every_line_is_an_object_that_names_its_request(tmp_path: Path, worker: Worker) -> None:
    with gateway(tmp_path, worker, ATELIER_LOG_FORMAT="json", **DIES) as process:
        ask_for_everything(process, worker)
        process.signal(signal.SIGTERM)
        process.wait()

    lines = [json.loads(line) for line in process.lines]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert {"uvicorn.error", "atelier.gateway"} <= {line["logger"] for line in lines}
    [broken] = [line for line in lines if "broke off" in line["message"]]
    assert (broken["level"], broken["request_id"]) == ("WARNING", "the-broken-one")
    assert [line for line in lines if "Started server" in line["message"] and "request_id" not in line]


def test_a_line_says_what_failed_and_which_trace_it_belongs_to() -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(trace_id=0xABC, span_id=1, is_remote=False))
    record = logging.LogRecord("a", logging.ERROR, __file__, 1, "%s\nfailed", ("it",), None)
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    with trace.use_span(span):
        written = JsonFormatter().format(record)

    assert "\n" not in written
    line = json.loads(written)
    assert line["message"] == "it\nfailed"
    assert line["trace_id"] == f"{0xABC:032x}"
    assert line["exception"].endswith("ZeroDivisionError: by zero")


ENDS_BY_AN_ERROR = """
import logging
from services.logs import write_logs
logging.basicConfig()
write_logs(logging.getLogger().handlers, "json")
1 / 0
"""


def test_what_ends_a_process_is_an_object_too() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_BY_AN_ERROR], capture_output=True, text=True, check=False)

    [line] = map(json.loads, done.stderr.splitlines())
    assert (line["level"], "ZeroDivisionError" in line["exception"]) == ("CRITICAL", True)
    assert done.returncode == 1
