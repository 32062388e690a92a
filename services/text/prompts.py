"""What a model reads: chats by its own template, tools in words where that knows none, all cut into tokens."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from services.errors import InvalidRequest
from services.text.calls import BEGIN, END
from services.text.schema import ChatJob, CompletionJob, TextJob

RESPONSE = "<tool_response>\n{}\n</tool_response>"
EXPLANATION = """\
You may call functions. These are their signatures:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as JSON between tags, and with nothing else:
<tool_call>
{{"name": "the function", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""


class Lengths:
    """Refuses texts that no context holds before they are cut, which would take long.

    No token has more characters than the longest has, spaces left aside: some tokenizers drop any number of them.
    """

    def __init__(self, tokenizer: Any, context: int) -> None:
        """Measure the vocabulary; where one token may stand for any number of characters, nothing is refused."""
        self._context = context
        shrinking = may_shrink(json.loads(tokenizer.backend_tokenizer.to_str()))
        longest = max((len(piece) for piece in tokenizer.get_vocab()), default=0)
        self._most = None if shrinking is None else context * longest * shrinking

    def check(self, text: str, source: str) -> None:
        """Refuse a text that is too long whatever it says.

        Raises:
            InvalidRequest: it is.
        """
        if self._most is not None and len(text) > self._most and sum(map(len, text.split())) > self._most:
            raise too_long(f"more than {self._context}", self._context, source)


def too_long(length: str, context: int, source: str) -> InvalidRequest:
    """Say that a prompt does not fit."""
    return InvalidRequest(
        f"the prompt takes {length} tokens with all that belongs to it, and the model's context holds {context}, "
        "the answer included; shorten it",
        param=source,
        code="context_length_exceeded",
    )


def may_shrink(tokenizer: Mapping[str, Any]) -> int | None:
    """Return how many characters may become one before they are cut, as far as a tokenizer's description says.

    Returns:
        None: any number, or nobody knows.
    """
    model, splitting = tokenizer["model"], json.dumps(tokenizer.get("pre_tokenizer"))
    knows_bytes = model.get("byte_fallback") or '"ByteLevel"' in splitting
    names_each = model.get("unk_token") is not None and not model.get("fuse_unk")
    if model.get("type") != "BPE" or not (knows_bytes or names_each) or '"Removed"' in splitting:
        return None
    waiting, factor = [tokenizer.get("normalizer")], 1
    while waiting:
        part: Any = waiting.pop()
        match part and part["type"]:
            case None | "NFD" | "NFKD" | "Prepend" | "Lowercase":
                pass
            case "NFC" | "NFKC":  # no character is made of more
                factor *= 4
            case "Sequence":
                waiting += part["normalizers"]
            case "Replace" if len(part["pattern"].get("String", "")) in range(1, len(part["content"]) + 1):
                pass
            case _:
                return None
    return factor


class Prompts:
    """Cuts jobs into tokens, each once."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        """Cut with the library's `tokenizer`, for a model of so many tokens of context."""
        self._tokenizer = tokenizer
        self._lengths = Lengths(tokenizer, context)

    def tokens(self, job: TextJob) -> Sequence[Sequence[int]]:
        """Return what the model reads of `job`: one prompt, or several.

        Raises:
            InvalidRequest: the template refuses what the caller said, or a text is longer than any context.
        """
        return job.tokens(self._cut)

    def _cut(self, job: TextJob) -> Sequence[Sequence[int]]:
        match job:
            case ChatJob():
                return [self._cut_text(self._written(job), job, add_special_tokens=False)]
            case CompletionJob():
                return [
                    self._cut_text(prompt, job, add_special_tokens=True) if isinstance(prompt, str) else prompt
                    for prompt in job.prompt
                ]
            case _:
                raise TypeError(job)

    def _cut_text(self, text: str, job: TextJob, *, add_special_tokens: bool) -> Sequence[int]:
        self._lengths.check(text, job.source)
        tokens: Sequence[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return tokens

    def _written(self, job: ChatJob) -> str:
        chat = [message.model_dump(exclude_none=True) for message in job.messages]
        for turn in chat:
            if turn["role"] == "developer":
                turn["role"] = "system"
        is_own = chat[0]["role"] != "system"
        if is_own:
            chat.insert(0, {"role": "system", "content": job.system_prompt})
        if job.preamble:
            chat[0]["content"] = f"{job.preamble}\n\n{chat[0]['content']}"
        tools = [tool.model_dump(exclude_none=True) for tool in job.tools] if job.callable else []
        chats = [chat]
        if job.preamble and len(chat) > 1:  # what the operator wants said is said
            chats.append(without_system(chat))
        elif is_own:  # our own words may be left out
            chats.append(chat[1:])
        return self._templated(chats, tools, job)

    def _templated(self, chats: Sequence[Sequence[Mapping[str, Any]]], tools: Any, job: ChatJob) -> str:
        """Write the first of the chats that the checkpoint's template takes: some know no system's turn.

        Raises:
            InvalidRequest: the template refuses what the caller said.
        """
        for number, chat in enumerate(chats, start=1):
            turns, told = with_tools(chat, tools, str(self._tokenizer.chat_template))
            try:
                return str(
                    self._tokenizer.apply_chat_template(turns, tools=told, tokenize=False, add_generation_prompt=True)
                )
            except (TemplateError, ValueError, TypeError, RecursionError) as error:
                if number == len(chats):
                    raise InvalidRequest(
                        f"the model's chat template refuses this: {error}", param=job.source
                    ) from error
        raise AssertionError


def without_system(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let the first to speak say what the system would."""
    system, first, *rest = turns
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def with_tools(
    chat: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], template: str
) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """Return turns and tools as a chat template takes them.

    Args:
        chat: turns in OpenAI's shape.
        tools: what may be called, in OpenAI's shape.
        template: the checkpoint's; one that knows no tools is told of them in words, and so is one with other tags: in
            the system's turn, or else in the user's first.
    """
    if "tools" in template and BEGIN in template:
        return [parsed(turn) for turn in chat], tools or None
    turns = [in_words(turn) for turn in chat]
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        told = EXPLANATION.format(tools=listed)
        first = next((turn for turn in turns if turn["role"] in ("system", "user")), turns[0])
        parts = [first["content"], told] if first["role"] == "system" else [told, first["content"]]
        first["content"] = "\n\n".join(parts)
    return turns, None


def parsed(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Give a template the arguments of calls as what they are, and not as JSON in a string."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in turn.get("tool_calls") or ()
    ]
    return {**turn, "content": turn.get("content") or "", **({"tool_calls": calls} if calls else {})}


def in_words(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Write calls, and what came of them, as text."""
    content = turn.get("content") or ""
    if turn["role"] == "tool":
        return {"role": "user", "content": RESPONSE.format(content)}
    for call in turn.get("tool_calls") or ():
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        written = f'{BEGIN}\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n{END}'
        content = f"{content}\n{written}" if content else written
    return {"role": turn["role"], "content": content}
