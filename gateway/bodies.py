"""JSON bodies as callers send them: read once, checked against a contract, and otherwise left as the bytes they are."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic_core
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from gateway.errors import PayloadTooLarge

Contract = TypeVar("Contract", bound=BaseModel)

DECODER = json.JSONDecoder()
SPACE = " \t\n\r"
MAX_COMMAS = 500_000  # of a body; each may part two values, and a value takes up to 1 us to read
MAX_VALUES = 20_000  # of a body that a contract is held against; a value that does not fit takes 5 us


def read_object(content: bytes, media_type: str) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        RequestValidationError: it is none.
        PayloadTooLarge: it has so many parts that reading it would hold up everybody else.
    """
    named = media_type.partition(";")[0].strip().lower()
    if named != "application/json" and not named.endswith("+json"):
        raise invalid("model_attributes_type")
    try:
        if content.count(b",") > MAX_COMMAS:
            raise PayloadTooLarge("the body has too many parts")
        found = pydantic_core.from_json(content)
    except ValueError as error:
        raise invalid("json_invalid") from error
    if not isinstance(found, dict):
        raise invalid("model_attributes_type")
    return found


def invalid(kind: str) -> RequestValidationError:
    """What is wrong with the body as a whole."""
    return RequestValidationError([{"type": kind, "loc": ("body",), "msg": "", "input": None}])


def checked(body: Mapping[str, Any], contract: type[Contract], *, is_form: bool = False) -> Contract:
    """Return the body as its contract has it; refuse what the worker would refuse.

    Args:
        body: what the caller sent.
        contract: of it.
        is_form: whether all values are text, and a number is one that reads as such; in JSON `"2"` is none.

    Raises:
        RequestValidationError: a field does not fit.
        PayloadTooLarge: it has more values than any that fits: each would be complained about.
    """
    if has_more(body, MAX_VALUES):
        raise PayloadTooLarge(f"the body has more than {MAX_VALUES} values")
    try:
        if is_form:
            return contract.model_validate(body)
        return contract.model_validate_json(pydantic_core.to_json(body, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from error


def has_more(body: Mapping[str, Any], num_values: int) -> bool:
    """Whether there are more than `num_values` in JSON that has been read, at all depths together."""
    waiting: list[Any] = [body]
    for each in waiting:  # which grows meanwhile
        if isinstance(each, dict | list) and each:
            waiting += each.values() if isinstance(each, dict) else each
            if len(waiting) > num_values:
                return True
    return False


def with_members(content: bytes, changes: Mapping[str, Any]) -> bytes:
    """Give members of a JSON object other values, put those first that are not there, and leave every other byte.

    Names are compared without case: some servers read `Model` as `model`.
    """
    text = content.decode()
    pieces, copied, missing = [], 0, dict(changes)
    found = members(text)
    for key, start, end in found:
        if (name := key.lower()) in changes:
            pieces += [text[copied:start], json.dumps(changes[name])]
            copied = end
            missing.pop(key, None)
    pieces.append(text[copied:])
    if missing:
        before, brace, after = "".join(pieces).partition("{")
        new = json.dumps(missing)[1:-1]
        pieces = [before, brace, new, ", " if found else "", after]
    return "".join(pieces).encode()


def form_with_model(form: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Name another model in a form, given as httpx takes it: its fields in `data`, or all parts in `files`."""
    if "data" in form:
        return {**form, "data": {**form["data"], "model": model}}
    others = [(name, part) for name, part in form["files"] if name != "model"]
    return {**form, "files": [("model", (None, model.encode())), *others]}


def members(text: str) -> list[tuple[str, int, int]]:
    """The members of a JSON object: each key, and where its value begins and ends."""
    found = []
    at = skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = DECODER.raw_decode(text, at)
        start = skip(text, skip(text, at) + 1)  # behind the colon
        _, end = DECODER.raw_decode(text, start)
        found.append((key, start, end))
        at = skip(text, end)
        at = skip(text, at + 1) if text[at] == "," else at
    return found


def skip(text: str, at: int) -> int:
    """The next place that is no space."""
    while text[at] in SPACE:
        at += 1
    return at
