"""What a provider says that its answer took, read from the end of the bytes as they pass; knows no route."""

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic_core
from pydantic import BaseModel, Field, ValidationError

from services.schema import Unit

TAIL = 65_536  # bytes of an answer's end that are kept: OpenAI's usage comes last
# A key and no text that looks like one: in a text, the quotation marks would be escaped.
USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
DATA = re.compile(rb"^data:(.*)$", re.MULTILINE)  # of a stream's events; no line of JSON begins so
NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
EVENTS = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
MAX_USAGE = 4096  # bytes
Count = Annotated[int, Field(ge=0, le=10**12)]


class Details(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: Count | None = 0


class ChatUsage(BaseModel):
    """As chats and completions have it."""

    prompt_tokens: Count
    completion_tokens: Count = 0
    prompt_tokens_details: Details | None = None

    @property
    def counted(self) -> tuple[int, int, int]:
        """Tokens of the prompt, of its part that was known already, and of the answer."""
        return self.prompt_tokens, (self.prompt_tokens_details or Details()).cached_tokens or 0, self.completion_tokens


class ResponseUsage(BaseModel):
    """As responses have it."""

    input_tokens: Count
    output_tokens: Count
    input_tokens_details: Details | None = None

    @property
    def counted(self) -> tuple[int, int, int]:
        """As of a chat."""
        return self.input_tokens, (self.input_tokens_details or Details()).cached_tokens or 0, self.output_tokens


class Meter:
    """Watches an answer pass.

    Args:
        hides: whether the caller shall not see the event that tells the usage of a stream, as only we asked for it.
    """

    def __init__(self, *, hides: bool = False) -> None:
        self._hides = hides
        self._held = b""
        self._tail = bytearray()
        self._is_cut = False
        self._began = time.monotonic()
        self.is_complete = False

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def watch(self, chunk: bytes) -> bytes:
        """Take a piece of the answer, and return what the caller gets to see now."""
        self._tail += chunk
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]
            self._is_cut = True
        if not self._hides:
            return chunk
        *events, self._held = EVENTS.split(self._held + chunk)
        if len(self._held) > TAIL:  # that is no event of theirs
            events, self._held = [*events, self._held], b""
        return b"".join(event for event in events if not tells_usage_alone(event))

    def end(self) -> bytes:
        """Note that the answer is whole, and return what has been held back."""
        self.is_complete = True
        return self._held

    @property
    def units(self) -> Mapping[Unit, float] | None:
        """What it took, as far as it has been said."""
        return units_in(bytes(self._tail), is_end=self.is_complete and self._is_cut)


def tells_usage_alone(event: bytes) -> bool:
    """Whether there is nothing else in an event of a stream."""
    return NO_CHOICES.search(event) is not None and units_in(event) is not None


def units_in(answer: bytes, *, is_end: bool = False) -> Mapping[Unit, float] | None:
    """Return the last usage that an answer tells; streams may tell it again and again.

    It stands at the top, or at that of `response`: further down may be what the caller has sent, such as the schema of
    a tool. Of the mere end of an answer that cannot be seen: there the last one counts.
    """
    events = DATA.findall(answer) or [answer]
    for event in reversed(events):
        try:
            found: Any = pydantic_core.from_json(event) if USAGE.search(event) else None
        except ValueError:
            continue  # its beginning is gone, or its end has not come
        if (usage := usage_of(found) or usage_of(member(found, "response"))) is not None:
            return counted(usage)
    places = list(USAGE.finditer(answer)) if is_end else []
    usages = (usage_at(answer[place.end() : place.end() + MAX_USAGE]) for place in reversed(places))
    return next((counted(usage) for usage in usages if usage is not None), None)


def counted(usage: ChatUsage | ResponseUsage) -> Mapping[Unit, float]:
    """Write a usage in our units."""
    prompt, cached, completion = usage.counted
    return {
        "tokens": prompt + completion,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "completion_tokens": completion,
    }


def member(found: Any, name: str) -> Any:
    """What an object has under a name; None where it is none, or has not."""
    return found.get(name) if isinstance(found, dict) else None


def usage_of(found: Any) -> ChatUsage | ResponseUsage | None:
    """Read the usage of an object, where it has one."""
    return valid(member(found, "usage"))


def usage_at(beginning: bytes) -> ChatUsage | ResponseUsage | None:
    """Read the object that begins here, where it is a usage."""
    for end in (match.end() for match in re.finditer(rb"\}", beginning)):
        try:
            found: Any = pydantic_core.from_json(beginning[:end])
        except ValueError:
            continue  # that bracket closes something in it
        return valid(found)
    return None


def valid(found: Any) -> ChatUsage | ResponseUsage | None:
    """Take what has the shape of a usage."""
    for kind in (ChatUsage, ResponseUsage):
        try:
            return kind.model_validate(found)
        except ValidationError:
            continue
    return None
