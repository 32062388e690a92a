"""`atelier usage` against a small server."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.cli.supervise import ROOT

CSV = "Request ID,Datetime,Endpoint Triggered\r\n0198,2026-11-22T10:00:00+00:00,/generate/text\r\n"
ENTRY = {
    "id": 1,
    "request_id": "0198",
    "started_at": "2026-11-22T10:00:00.25Z",
    "method": "GET",
    "endpoint": "/generate/text",
    "client_address": "127.0.0.1",
    "response_seconds": 1.25,
    "status": 200,
    "ending": "left",
}


SUMMARY = {
    "data": [
        {
            "start": "2026-11-01",
            "end": "2026-12-01",
            "results": [
                {
                    "model": "tiny-sd",
                    "requests": 1234,
                    "failures": 5,
                    "response_seconds": 99.25,
                    "units": {"pixel_steps": 12345678, "audio_seconds": 2.5},
                },
                {"model": "", "requests": 1, "failures": 1, "response_seconds": 0.0, "units": {}},
            ],
        }
    ],
    "has_more": False,
}


class UsageHandler(BaseHTTPRequestHandler):
    """Answers as the gateway does."""

    asked: ClassVar[dict[str, list[str]]] = {}
    path_asked: ClassVar[str] = ""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        UsageHandler.asked = parse_qs(address.query)
        UsageHandler.path_asked = address.path
        if "since" in UsageHandler.asked:
            return self.answer(422, "application/json", json.dumps({"error": {"message": "since: not a date"}}))
        if self.headers["accept"] == "text/csv":
            return self.answer(200, "text/csv", CSV, missing=7 if "until" in UsageHandler.asked else 0)
        found = SUMMARY if address.path == "/v1/usage/summary" else {"data": [ENTRY], "has_more": True}
        return self.answer(200, "application/json", json.dumps(found))

    def answer(self, status: int, media_type: str, body: str, missing: int = 0) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body) + missing))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), UsageHandler) as httpd:
        thread = Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def usage(url: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "usage", *options],
        cwd=ROOT,
        env={**os.environ, "ATELIER_URL": url},
        capture_output=True,
        timeout=120,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert len(lines) == 1
    return lines[0]


def test_csv_is_passed_on_byte_for_byte() -> None:
    with server() as url:
        done = usage(url, "--csv", "--limit", "5")
    assert done.stdout == CSV.encode()
    assert UsageHandler.asked == {"limit": ["5"]}


def test_a_table_has_a_line_for_each_request() -> None:
    with server() as url:
        heading, line, hint = usage(url).stdout.decode().splitlines()
    assert heading.split() == ["When", "(UTC)", "Status", "Seconds", "Client", "Endpoint"]
    assert line.split() == ["2026-11-22", "10:00:00", "200", "left", "1.250", "127.0.0.1", "GET", "/generate/text"]
    assert "--until 2026-11-22T10:00:00.25Z" in hint


def test_totals_have_a_line_for_each_group() -> None:
    with server() as url:
        lines = usage(url, "--by", "model", "--per", "1mo").stdout.decode().splitlines()
    assert lines[0].split() == ["From", "To", "Model", "Requests", "Failures", "Seconds", "Made"]
    assert lines[1].split()[:6] == ["2026-11-01", "2026-11-30", "tiny-sd", "1,234", "5", "99.2"]
    assert lines[1].endswith("12,345,678 pixel steps, 2.5 audio seconds")
    assert lines[2].split() == ["2026-11-01", "2026-11-30", "-", "1", "1", "0.0"]
    assert UsageHandler.asked == {"group_by": ["model"], "bucket_width": ["1mo"]}


def test_totals_come_as_a_file_too() -> None:
    with server() as url:
        assert usage(url, "--csv", "--by", "caller,model").stdout == CSV.encode()
    assert UsageHandler.path_asked == "/v1/usage/summary"
    assert UsageHandler.asked == {"group_by": ["caller,model"], "bucket_width": ["all"]}


@pytest.mark.parametrize("options", [(), ("--by", "model")])
def test_json_is_the_servers_own_page(options: tuple[str, ...]) -> None:
    with server() as url:
        page = json.loads(usage(url, "--json", *options).stdout)
        assert "choose" in complaint(usage(url, "--json", "--csv"))
    assert page == (SUMMARY if options else {"data": [ENTRY], "has_more": True})


def test_what_the_server_refuses_is_said_in_its_words() -> None:
    with server() as url:
        assert "says 422: since: not a date" in complaint(usage(url, "--csv", "--since", "yesterday"))


def test_half_a_file_is_no_success() -> None:
    with server() as url:
        assert "broke off" in complaint(usage(url, "--csv", "--until", "2027-01-01"))


def test_nobody_there_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert f"nothing answers at {url}" in complaint(usage(url, "--csv"))


def test_an_address_without_http_is_one_line() -> None:
    assert "is no http:// or https:// address" in complaint(usage("127.0.0.1:8000"))
