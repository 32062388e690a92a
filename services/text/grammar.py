"""Which tokens may come next, so that what is written is JSON of a schema, or calls of tools; by llguidance."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits

from services.errors import GenerationFailed, InvalidRequest
from services.text.calls import BEGIN, END
from services.text.schema import Function

ANY = r"(.|\n)*"
MAX_OPTIONAL = 500  # properties of one object: each token takes longer the more of them may come next
MAX_MULTIPLES = 20_000  # all whole `multipleOf` together: 100,000 take seconds, 1,000,000 minutes
MAX_PATTERNS = 12  # where parts of a schema go together: 16 take 0.3 seconds, each more twice as long
LIMITS = LLParserLimits(max_items_in_row=10_000)  # four for each of them; more end an answer midway
COMPACT = {"whitespace_flexible": False}  # else spaces and newlines may go on for ever


class Guide:
    """A grammar, and how far an answer has come in it."""

    def __init__(self, matcher: LLMatcher, vocabulary_size: int) -> None:
        """Begin with `matcher`."""
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next, bool of shape (vocabulary,).

        Raises:
            GenerationFailed: what follows is too much to work out; the answer would end here as if it were whole.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise left()
        mask = np.unpackbits(bits, count=self._vocabulary_size, bitorder="little")
        return torch.from_numpy(mask.astype(np.bool_))

    def take(self, token: int) -> None:
        """Go on by a token.

        Raises:
            GenerationFailed: it is none of those allowed.
        """
        if not self._matcher.consume_token(token):
            raise left()

    def copy(self) -> "Guide":
        """Return another that has come as far."""
        return Guide(self._matcher.deep_copy(), self._vocabulary_size)


class Grammars:
    """The grammars that one tokenizer's tokens can be held to."""

    def __init__(self, tokenizer: Any, vocabulary_size: int, ends: Sequence[int]) -> None:
        """Read the vocabulary.

        Args:
            tokenizer: the library's.
            vocabulary_size: of the model, which may be larger than the tokenizer's, or smaller.
            ends: tokens that end an answer; none: the tokenizer's own.
        """
        size = max(vocabulary_size, max(tokenizer.get_vocab().values()) + 1)
        self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=size, eos_token=list(ends) or None)
        self._size = vocabulary_size

    def of_json(self, schema: Mapping[str, Any], param: str) -> Guide:
        """Return the grammar of JSON documents.

        Args:
            schema: of the documents.
            param: what the caller gave it as.

        Raises:
            InvalidRequest: the schema asks for what cannot be guaranteed.
        """
        check_effort([schema], param)
        return self._begin(json.dumps({"grammars": [{"json_schema": compact(schema)}]}), param)

    def of_calls(self, functions: Sequence[Function], *, is_parallel: bool) -> Guide:
        """Return the grammar of calls of these functions: one, or several if that is wanted.

        Raises:
            InvalidRequest: the parameters of one ask for what cannot be guaranteed.
        """
        more = ' ("\\n" call)*' if is_parallel else ""
        return self._begin(f'start: call{more}\ncall: "{BEGIN}" {inside_of_call(functions)}\n', "tools")

    def of_text_with_calls(self, functions: Sequence[Function]) -> Guide:
        """Return the grammar of any text, in which whatever begins a call is one of these functions'.

        Raises:
            InvalidRequest: the parameters of one ask for what cannot be guaranteed.
        """
        return self._begin(
            f"start: call* REST\n"
            f"call: before {inside_of_call(functions)}\n"
            f'before[suffix="{BEGIN}"]: /{ANY}/\n'
            f"REST: /{ANY}/ & ~/{ANY}{BEGIN}{ANY}/\n",
            "tools",
        )

    def _begin(self, grammar: str, param: str) -> Guide:
        matcher = LLMatcher(self._tokens, grammar, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # which finds what is too large, or has no end
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            reason = (matcher.get_error() or "no document ever fits").splitlines()[0]
            raise InvalidRequest(f"{param} cannot be kept to: {reason}", param=param)
        return Guide(matcher, self._size)


def left() -> GenerationFailed:
    """What is said where a grammar cannot be kept to any further."""
    return GenerationFailed("the answer left its grammar; ask again, or for something simpler")


def inside_of_call(functions: Sequence[Function]) -> str:
    """Return the rule of what follows the tag that begins a call.

    Raises:
        InvalidRequest: one has parameters that too many of may come next.
    """
    check_effort([function.parameters or {} for function in functions], "tools")
    calls = []
    for function in functions:
        arguments = compact({**(function.parameters or {}), "type": "object"})  # a document: its own pointers hold
        head = json.dumps(f'{{"name":"{function.name}","arguments":')
        calls.append(f'{head} %json {json.dumps(arguments)} "}}"')
    return f'"\\n" ({" | ".join(calls)}) "\\n{END}"'


def compact(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Let what is written by the schema have no spaces where JSON needs none."""
    return {**schema, "x-guidance": COMPACT}


def check_effort(schemas: Sequence[Mapping[str, Any]], param: str) -> None:
    """Refuse what would keep everybody waiting while it is worked out; what else is too large, llguidance refuses.

    Raises:
        InvalidRequest: an object has too many properties that may come next, or numbers or patterns are too many.
    """
    left: list[Any] = list(schemas)
    num_patterns, goes_together, multiples = 0, False, 0
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        if not isinstance(part, dict):
            continue
        properties, required = part.get("properties"), part.get("required")
        if isinstance(properties, dict):
            must = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
            if len(properties.keys() - must) > MAX_OPTIONAL:
                raise too_much(f"an object has more than {MAX_OPTIONAL} properties that are not required", param)
        num_patterns += isinstance(part.get("pattern"), str)
        goes_together = goes_together or "allOf" in part or ("$ref" in part and len(part) > 1)
        multiple = part.get("multipleOf")
        if isinstance(multiple, int) or (isinstance(multiple, float) and multiple.is_integer()):
            multiples += abs(int(multiple))
        left += part.values()
    if multiples > MAX_MULTIPLES:
        raise too_much(f"its multipleOf are more than {MAX_MULTIPLES} together", param)
    if goes_together and num_patterns > MAX_PATTERNS:
        raise too_much(f"it has more than {MAX_PATTERNS} patterns, and allOf or a $ref beside others", param)


def too_much(reason: str, param: str) -> InvalidRequest:
    """Say what of a schema takes too long."""
    return InvalidRequest(f"{param} cannot be kept to: {reason}", param=param)
