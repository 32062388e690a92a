"""What callers asked and were answered, for operators who want it in the log: cut short, and without secrets."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

from gateway.patterns import compiled

Kept = Literal["none", "prompts", "all"]
BYTES_A_CHARACTER = 64  # that are kept until the end: an event has a token of text in it
BEYOND = 200  # characters that are looked at after the last one, so that no secret is cut in two before it is found
REDACTED = "[redacted]"
SECRETS = (
    r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",  # e-mail addresses
    r"\batl_[0-9a-f]{16}_[\w-]{12,}",  # our own
    r"\b(?:sk|pk|rk|gh[opsu]|xox[abp]|hf|AKIA|AIza)[-_]?[\w-]{12,}",  # keys, as those who issue them mark them
    r"(?<![\w-])eyJ[\w-]+\.[\w-]+\.[\w-]+",  # JSON web tokens
    r"(?i:\b(?:bearer|basic)\s+)[\w.+/=-]{8,}",
    r"(?i:\b(?:api[-_ ]?key|token|password|secret)\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\s\"',}\\]{4,}",
    r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)",  # card numbers
)


@dataclass(frozen=True)
class ContentPolicy:
    """What of the content is kept.

    Args:
        kept: nothing, what was asked, or also what was answered.
        max_chars: of each of the two.
        patterns: RE2's, of what is redacted besides our own.
    """

    kept: Kept = "none"
    max_chars: int = 4000
    patterns: Sequence[str] = ()

    def clean(self, text: str) -> str:
        """Take out secrets, then cut."""
        cleaned = re.sub("|".join(SECRETS), REDACTED, text[: self.max_chars + BEYOND])
        if self.patterns:
            cleaned = compiled(self.patterns).sub(REDACTED, cleaned)
        return cleaned[: self.max_chars]


class Content:
    """What of one exchange is kept, while it passes."""

    def __init__(self, policy: ContentPolicy) -> None:
        """Keep as much as the policy wants, or as `kept` is set to before anything has passed."""
        self._policy = policy
        self.kept: Kept = policy.kept
        self._max_bytes = (policy.max_chars + BEYOND) * BYTES_A_CHARACTER
        self._asked, self._answered = bytearray(), bytearray()

    def ask(self, body: bytes) -> None:
        """Take a piece of the request."""
        if self.kept != "none":
            self._asked += body[: self._max_bytes - len(self._asked)]

    def answer(self, body: bytes) -> None:
        """Take a piece of the answer."""
        if self.kept == "all":
            self._answered += body[: self._max_bytes - len(self._answered)]

    def prompt(self, query: bytes) -> str | None:
        """What was asked: the prompt of the query, or the JSON of the body."""
        if self.kept == "none":
            return None
        prompts = [value for name, value in parse_qsl(query.decode("latin-1")) if name == "prompt"]
        is_json = self._asked.lstrip()[:1] == b"{"
        return self._policy.clean(prompts[0] if prompts else readable(self._asked) if is_json else "") or None

    def output(self) -> str | None:
        """What was answered, as text; events are put together first, or a secret may lie across two of them."""
        if self.kept != "all":
            return None
        is_stream = self._answered.startswith((b"data: ", b"event:"))
        return self._policy.clean(told(self._answered) if is_stream else readable(self._answered))


def readable(body: bytes | bytearray) -> str:
    """Write JSON without escapes, which a pattern would not see through; all else as it is."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False)
    except ValueError:
        return body.decode(errors="replace")


def told(stream: bytes | bytearray) -> str:
    """Put the text in a stream of events together, of one answer after the other."""
    answers: defaultdict[int, str] = defaultdict(str)
    for line in stream.split(b"\n"):
        if line.startswith(b"data: {"):
            with suppress(ValueError, AttributeError, TypeError):  # the last one is cut off; others may be anything
                for index, text in pieces(json.loads(line[6:])):
                    answers[index] += text
    return "\n".join(answers[index] for index in sorted(answers))


def pieces(event: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield what an event of OpenAI's three routes adds to which answer."""
    if str(event.get("type", "")).endswith(".delta"):
        yield 0, event["delta"]
    for choice in event.get("choices", ()):
        part = choice.get("delta") or choice
        yield choice["index"], part.get("content") or part.get("text") or ""
        for call in part.get("tool_calls") or ():
            yield choice["index"], call["function"].get("arguments") or ""
