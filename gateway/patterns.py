"""Regular expressions that operators write and callers feed: RE2's, which take no more than linear time."""

from functools import cache
from typing import Annotated, Any

import re2
from pydantic import AfterValidator

PROGRAM_BYTES = 64 << 20  # that a list of patterns may take when compiled


@cache
def compiled(patterns: tuple[str, ...]) -> Any:
    """Return one expression that finds what any of `patterns` does, in linear time.

    Raises:
        ValueError: one of them is none of RE2's, such as one with a back-reference.
    """
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PROGRAM_BYTES
    try:
        return re2.compile("|".join(f"(?:{pattern})" for pattern in patterns), options)
    except re2.error as error:
        raise ValueError(f"is no pattern of RE2: {error.args[0].decode()}") from error


def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no pattern, each by itself."""
    for pattern in patterns:
        compiled((pattern,))
    return patterns


Patterns = Annotated[tuple[str, ...], AfterValidator(check_patterns)]
