"""Server-sent events, as the gateway sends them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

END = "[DONE]"


def events_of(lines: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the fields of each event; it reads to the end, so that the connection can serve again."""
    name = "message"
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data" and value != END:
            yield name, json.loads(value)
            name = "message"
