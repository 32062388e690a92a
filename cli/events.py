"""Server-sent events, as the gateway and its workers send them; knows no route."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cli.errors import NoAnswer

END = "[DONE]"


@dataclass(frozen=True)
class Event:
    """One of them; its name is `[DONE]` where it says that there are no more."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    number: str = ""


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """Yield the events that lines are made of.

    Raises:
        NoAnswer: one of them says that it went wrong.
    """
    given: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name:
            given[name] = value
            continue
        if given.get("data") == END:
            yield Event(END)
        elif "data" in given:
            yield checked(Event(given.get("event", "message"), json.loads(given["data"]), given.get("id", "")))
        given = {}


def checked(event: Event) -> Event:
    """Pass what is no error."""
    error = event.fields.get("error")
    if event.name == "error" and not error:
        error = event.fields
    if error:
        raise NoAnswer(f"it went wrong on the way: {error.get('message') or error}")
    return event
