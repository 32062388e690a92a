"""What the tiny chat model is trained to know of Atelier is true: its answers are held against code and README."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from gateway.app import create_app
from gateway.errors import GatewayError
from gateway.settings import Settings
from services.errors import ServiceError
from services.tiny.train.facts import CODES, COMMANDS, ERRORS, GENERAL, ROUTES, atelier_facts
from services.tiny.train.small_talk import KNOWLEDGE, SMALL_TALK

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def errors(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for special in kind.__subclasses__():
        yield from errors(special)


KINDS = [*errors(ServiceError), *errors(GatewayError)]


def test_routes_are_the_gateways() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    for route in ROUTES.values():
        method, path = route.split()
        assert method.lower() in paths[path], route


def test_errors_have_these_statuses() -> None:
    statuses = {(kind.code, kind.status) for kind in KINDS}  # type: ignore[attr-defined]
    assert set(CODES.items()) <= statuses
    assert set(ERRORS) <= {status for _, status in statuses}


@cache
def commands(*group: str) -> set[str]:
    told = subprocess.run([sys.executable, "-m", "cli", *group, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"^  ([a-z]+)  ", told.stdout.partition("Commands:")[2], re.MULTILINE))


def test_commands_exist() -> None:
    for line in COMMANDS.values():
        program, *names = line.split()
        assert program == "atelier"
        for place, name in enumerate(names):
            assert name in commands(*names[:place])


def test_what_is_quoted_is_in_the_readme() -> None:
    for fact in GENERAL:
        for quoted in re.findall(r"`([^`]+)`|(http://[\w.:/]*\w)", fact.answer):
            assert "".join(quoted) in README


def test_no_question_has_two_answers() -> None:
    answers: dict[str, str] = {}
    for fact in (*atelier_facts(), *SMALL_TALK, *KNOWLEDGE):
        for question in fact.questions:
            assert answers.setdefault(question, fact.answer) == fact.answer
