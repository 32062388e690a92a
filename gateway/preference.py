"""What a client prefers: an answer, or a job. Source: RFC 7240."""

import re

from starlette.types import Scope

WAIT = re.compile(r'wait\s*=\s*("?)([0-9]+)\1')
MAX_WAIT = 300  # seconds


def preferences(scope: Scope) -> list[str]:
    """What the request's `Prefer` headers name, in lower case."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"prefer"]
    return [one.strip() for one in re.split("[,;]", ",".join(given).lower())] if given else []


def prefers_job(scope: Scope) -> bool:
    """Whether what is asked for becomes a job: its route says so, or `Prefer: respond-async`."""
    return bool(scope.get("is_job")) or "respond-async" in preferences(scope)


def applied(scope: Scope) -> dict[str, str]:
    """Say which preference was followed, where a client has one that means something here."""
    if seconds := seconds_to_wait(scope):
        return {"preference-applied": f"wait={seconds}"}
    return {"preference-applied": "respond-async"} if "respond-async" in preferences(scope) else {}


def seconds_to_wait(scope: Scope) -> int:
    """How long the client would wait for the job's end before it is answered."""
    found = [int(match[2][:9]) for match in map(WAIT.fullmatch, preferences(scope)) if match]
    return min(MAX_WAIT, *found) if found else 0
