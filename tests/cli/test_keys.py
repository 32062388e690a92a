"""`atelier keys` against a gateway."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.app import create_app
from tests.cli.supervise import ROOT
from tests.gateway.conftest import Workers, gateway_settings, served


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with served(create_app(gateway_settings(tmp_path), Workers())) as url:
        yield url


def keys(url: str, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "keys", *arguments],
        cwd=ROOT,
        env={**os.environ, "ATELIER_URL": url, "ATELIER_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_keys_are_made_shown_and_ended(url: str) -> None:
    admin = keys(url, "create", "--owner", "ada", "--scope", "admin").stdout.strip()
    options = (
        "--scope",
        "image",
        "--scope",
        "text",
        "--model",
        "tiny-sd",
        "--expires",
        "2100-01-01T12:00",
        "--rpm",
        "60",
    )
    made = keys(url, "create", "--owner", "bob", *options, "--rpm", "60", "--budget", "day:tokens=5e4", key=admin)
    bob = made.stdout.strip()
    assert "shown this once" in made.stderr

    heading, *lines = keys(url, "list", key=admin).stdout.splitlines()
    assert heading.split()[:4] == ["Id", "Owner", "Scopes", "Models"]
    assert lines[0].split()[:4] == [bob.split("_")[1], "bob", "image,text", "tiny-sd"]
    assert " 60 a minute, 50000 tokens a day " in lines[0]
    assert lines[0].split()[-4:] == ["never", "until", "2100-01-01", "12:00"]
    assert lines[1].split()[:4] == [admin.split("_")[1], "ada", "admin", "all"]
    assert lines[1].endswith("open")
    assert bob.split("_", 2)[2] not in "".join(lines)

    changes = ("--rpm", "0", "--model", "all", "--expires", "never", "--owner", "eve", "--scope", "mesh")
    changed = keys(url, "change", bob.split("_")[1], *changes, key=admin).stdout.splitlines()[1]
    assert changed.split()[:4] == [bob.split("_")[1], "eve", "mesh", "all"]
    assert " 50000 tokens a day " in changed
    assert " a minute" not in changed
    assert changed.endswith("open")
    assert "what shall change" in keys(url, "change", bob.split("_")[1], key=admin).stderr

    ended = keys(url, "revoke", bob.split("_")[1], key=admin)
    assert ended.stdout == f"Key {bob.split('_')[1]} of eve opens nothing any more.\n"
    assert "revoked 20" in keys(url, "list", key=admin).stdout


def test_what_the_gateway_refuses_is_said_in_a_line(url: str) -> None:
    admin = keys(url, "create", "--owner", "ada", "--scope", "admin").stdout.strip()
    for arguments, key, sentence in (
        (("list",), "", "says 401: a key is needed"),
        (("list",), "sk-1", "says 401: this is no key of this server; its keys begin with atl_; ATELIER_API_KEY"),
        (("create", "--owner", "eve", "--scope", "root"), admin, "says 400: scopes.0: "),
        (("revoke", "0123"), admin, "says 404: there is no key of this id"),
    ):
        done = keys(url, *arguments, key=key)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert sentence in line
