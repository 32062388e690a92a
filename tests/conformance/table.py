"""Writes what was found as `docs/openai-compatibility.md`."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from tests.conformance.calls import CALLS, UNSERVED
from tests.conformance.parameters import Fates

PAGE = Path(__file__).parents[2] / "docs" / "openai-compatibility.md"
HEAD = """# The OpenAI SDK against Atelier

Written by `tests/conformance/`, which calls every method below of the official Python SDK ({sdk}) on a running system;
do not edit it: a test that finds something else writes the page anew, and fails once.

```python
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="…")
```

## Methods

"""
PARAMETERS = """
Not served; a 404 says so: {unserved}.

## Parameters

*Only as the default*: the value that changes nothing may be sent, another is refused. *Refused*: `BadRequestError`,
whose `param` is the name. *Besides*: what `extra_body` may have that the SDK has no name for.

"""
ERRORS = """
## Errors

| the SDK raises | when |
|---|---|
"""


def page(
    found: Mapping[tuple[str, str], Exception | None],
    fates: Mapping[str, Fates],
    errors: Mapping[str, str],
) -> str:
    sdk = ".".join(version("openai").split(".")[:2])
    unserved = ", ".join(f"`{method}`" for method in sorted(UNSERVED))
    return "".join(
        (
            HEAD.format(sdk=sdk),
            *methods(found),
            PARAMETERS.format(unserved=unserved),
            *parameters(fates),
            ERRORS,
            *(f"| `{name}` | {when} |\n" for name, when in errors.items()),
        )
    )


def methods(found: Mapping[tuple[str, str], Exception | None]) -> Iterable[str]:
    yield "| method | ways | sync | async |\n|---|---|---|---|\n"
    for method in dict.fromkeys(call.method for call in CALLS):
        calls = [call for call in CALLS if call.method == method]
        ways = ", ".join(call.way or "plain" for call in calls)
        cells = (
            "no: " + ", ".join(failed)
            if (failed := [c.way or "plain" for c in calls if found[c.name, kind]])
            else "yes"
            for kind in ("sync", "async")
        )
        yield f"| `{method}` | {ways} | {' | '.join(cells)} |\n"


def parameters(fates: Mapping[str, Fates]) -> Iterable[str]:
    columns = {
        "supported": "supported",
        "unused": "accepted and not used",
        "default": "only as the default",
        "refused": "refused",
    }
    yield f"| method | {' | '.join(columns.values())} | besides |\n|{'---|' * (len(columns) + 2)}\n"
    for method, found in fates.items():
        cells = [named(name for name, fate in found.of.items() if fate == kind) for kind in columns]
        yield f"| `{method}` | {' | '.join(cells)} | {named(found.besides)} |\n"


def named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
