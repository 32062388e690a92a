"""Chat models by the token: every request at its own, all in one forward; knows no HTTP."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from transformers import AutoTokenizer

from services.engine.generation import Run
from services.engine.stepper import Result
from services.engine.weights import open_weights
from services.errors import InvalidRequest, ModelUnavailable
from services.registry import Model
from services.schema import MAX_SEED
from services.settings import Settings
from services.text.calls import CallReader
from services.text.grammar import Grammars, Guide
from services.text.linear import Packing, is_supported
from services.text.network import Memory, Network
from services.text.pieces import Call, Piece, Token
from services.text.portions import Portions
from services.text.prefixes import Prefixes, goes_along, names
from services.text.prompts import Prompts
from services.text.rows import Row, spare
from services.text.sampling import Chosen, Sampler, Sampling, describe
from services.text.schema import TextJob
from services.text.writing import Vocabulary, Writer

MAX_CHATS = 32  # in progress at once, where the operator says nothing


class Phase(StrEnum):
    """What a request's next forward is."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(eq=False)
class Answer:
    """One of a request's answers on its way.

    Args:
        token: chosen, and not yet in the model.
        guide: what may be written.
        calls: finds calls of tools in what is written.
        waiting: tokens to be told as soon as the characters that they begin with are out.
    """

    index: int
    row: Memory
    sampler: Sampler
    writer: Writer
    guide: Guide | None = None
    calls: CallReader | None = None
    token: int = 0
    num_tokens: int = 0
    finish_reason: str | None = None
    waiting: list[tuple[int, Token]] = field(default_factory=list)


@dataclass(eq=False)
class Conversation:
    """A request on its way.

    Args:
        limit: tokens that an answer may have.
        row: of the prompt.
        blocks: names of the prompt's blocks, but for the last token.
    """

    job: TextJob
    run: Run
    seed: int
    prompt: Sequence[int]
    limit: int
    row: Memory
    guide: Guide | None = None
    blocks: Sequence[bytes] = ()
    answers: list[Answer] = field(default_factory=list)
    num_iterations: int = 0

    @property
    def phase(self) -> Phase:
        """What the next forward is."""
        return Phase.DECODE if self.answers else Phase.PREFILL

    @property
    def left(self) -> Sequence[int]:
        """What of the prompt is not in the model yet."""
        return self.prompt[self.row.length :]

    @property
    def open(self) -> list[Answer]:
        """The answers that go on."""
        return [answer for answer in self.answers if answer.finish_reason is None]

    def advance(self, portion: int) -> None:
        """Tell of an iteration, where one reads so many tokens; raises when nobody waits any more."""
        self.num_iterations += 1
        num_parts = -(-len(self.left) // portion)  # the last one gives the first token
        num_tokens = max((answer.num_tokens for answer in self.answers), default=1)
        self.run.advance(self.num_iterations, self.num_iterations + num_parts + self.limit - num_tokens)


class TextStepper:
    """One chat model; loaded when it is made."""

    always_shares = True

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring tokenizer and weights into memory.

        Raises:
            ModelUnavailable: its tokenizer cannot write text token by token.
        """
        weights = open_weights(model, settings)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(weights.folder)
        if not self._tokenizer.is_fast:
            raise ModelUnavailable(f"model '{model.id}' has no fast tokenizer (tokenizer.json), and none can be made")
        self._prompts = Prompts(self._tokenizer)
        self._vocabulary = Vocabulary(self._tokenizer)
        self._network = Network(weights, choose_packing(settings, weights.device))
        self._portions = Portions()
        self._prefixes = Prefixes(settings.prefix_cache_mb * 1e6) if self._network.shares else None
        self.max_active = settings.max_batch_size or MAX_CHATS
        generation = self._network.generation
        self._ends = frozenset(as_list(generation.eos_token_id))
        self._missing = frozenset(self._vocabulary.missing(self._network.vocabulary_size))
        self._banned = sorted({*as_list(generation.suppress_tokens), *self._missing})
        self._repetition_penalty = float(generation.repetition_penalty or 1)

    def cost(self, request: TextJob) -> int:
        """Estimate what the longest answers keep of themselves and of the prompt.

        Raises:
            InvalidRequest: the prompt does not fit into the model's context, or has words that it does not know.
        """
        length = min(len(self._prompt(request)) + request.max_tokens, self._network.context)
        return request.n * (length + spare(length)) * self._network.bytes_per_token

    def admit(self, request: TextJob, seed: int, run: Run) -> Conversation:
        """Cut the prompt into tokens.

        Raises:
            InvalidRequest: it does not fit into the model's context, or names tokens that the model has not.
        """
        prompt = self._prompt(request)
        for token in request.logit_bias:
            if token >= self._network.vocabulary_size or token in self._missing:
                raise InvalidRequest(f"logit_bias names token {token}, which the model has not", param="logit_bias")
        limit = min(request.max_tokens, self._network.context - len(prompt))
        guide = self._guide(request)
        row = self._prefixes.begin(prompt) if self._prefixes else self._network.new_row()
        run.count(prompt_tokens=row.length, cached_tokens=row.length)
        return Conversation(request, run, seed, prompt, limit, row, guide, tuple(names(prompt[:-1])))

    def _prompt(self, job: TextJob) -> Sequence[int]:
        """Return the prompt in tokens.

        Raises:
            InvalidRequest: it does not fit into the model's context, or has words that it does not know.
        """
        prompt = self._prompts.tokens(job)
        if len(prompt) >= self._network.context:
            raise InvalidRequest(
                f"the prompt takes {len(prompt)} tokens with all that belongs to it, and the model's context holds "
                f"{self._network.context}, the answer included; shorten it",
                param=job.source,
                code="context_length_exceeded",
            )
        if max(prompt, default=0) >= self._network.vocabulary_size:
            raise InvalidRequest(
                f"the model does not know '{self._vocabulary.text(max(prompt))}', though its tokenizer does",
                param=job.source,
            )
        return prompt

    def _guide(self, job: TextJob) -> Guide | None:
        """Return the grammar that the answer is held to.

        Raises:
            InvalidRequest: there is none that can be kept to.
        """
        if job.document is not None:
            return self._grammars.of_json(job.document, job.document_source)
        if job.must_call:
            return self._grammars.of_calls(job.must_call, is_parallel=job.parallel_tool_calls)
        if job.may_call:
            return self._grammars.of_text_with_calls(job.may_call)
        return None

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer, self._network.vocabulary_size, sorted(self._ends))

    def key(self, state: Conversation) -> Phase | None:
        """Let all read their prompts together, and all write together, if the model can."""
        return state.phase if self._network.shares else None

    def forward(self, states: Sequence[Conversation]) -> Sequence[Any]:
        """Run the phase's forward."""
        return self._prefill(states) if states[0].phase is Phase.PREFILL else self._decode(states)

    def advance(self, state: Conversation, row: Any) -> Result | None:
        """Take the row in and emit a `Piece` of each answer that has text to show.

        Raises:
            GenerationFailed: the model's numbers overflowed.
            Cancelled: the caller left.
            DeadlineExceeded: the caller's deadline has passed.
        """
        if row is None:  # the others' prompts filled the forward, or one of them is the same so far
            return None
        if state.phase is Phase.PREFILL:
            num_read, scores = row
            state.row.length += num_read
            state.run.count(prompt_tokens=num_read)
            if self._prefixes is not None and isinstance(state.row, Row):
                self._prefixes.keep(state.prompt[: state.row.length], state.row)
            if not state.left:
                self._begin(state, scores)
        else:
            for answer, scores in zip(state.open, row, strict=True):
                answer.row.length += 1
                self._take(state, answer, scores)
        state.advance(self._portions.most)
        if state.phase is Phase.PREFILL or state.open:
            return None
        reasons = {answer.finish_reason for answer in state.answers}
        return Result(next(reason for reason in ("length", "tool_calls", "stop") if reason in reasons))

    def _catch_up(self, prefixes: Prefixes, state: Conversation) -> None:
        """Take over what others have read of the same prompt meanwhile: to do it twice changes nothing."""
        row = prefixes.begin(state.prompt)
        num_found = row.length - state.row.length
        if num_found > 0:
            state.row = row
            state.run.count(prompt_tokens=num_found, cached_tokens=num_found)

    def preview(self, state: Conversation) -> None:
        """Show nothing: the text itself comes as it is made."""

    def _prefill(self, states: Sequence[Conversation]) -> Sequence[Any]:
        """Read the next part of the prompts, or as many of them as one forward may have.

        Where sequences cannot share, a prompt is read whole: what the model remembers may depend on the parts.
        """
        if self._prefixes is not None:
            sizes = self._portions.cut(self._lengths(self._prefixes, states))
        else:
            sizes = [len(state.left) for state in states]
        parts = [state.left[:size] for state, size in zip(states, sizes, strict=True)]
        feeds = [(state.row, part) for state, part in zip(states, parts, strict=True) if part]
        began = time.monotonic()
        scores = iter(self._network.forward(feeds))
        self._portions.note_reading(sum(sizes), time.monotonic() - began)
        return [(len(part), next(scores)) if part else None for part in parts]

    def _lengths(self, prefixes: Prefixes, states: Sequence[Conversation]) -> list[int]:
        """Say how much of each prompt is left; nothing is read that another reads for it in the same forward."""
        if not prefixes.keeps_some:
            return [len(state.left) for state in states]
        lengths: list[int] = []
        for place, state in enumerate(states):
            is_read = any(
                other.row.length >= state.row.length and goes_along(state.blocks, other.blocks, other.row.length)
                for other, length in zip(states[:place], lengths, strict=True)
                if length
            )
            if not is_read and prefixes.knows(state.blocks, state.row.length):
                self._catch_up(prefixes, state)
            lengths.append(0 if is_read else len(state.left))
        return lengths

    def _decode(self, states: Sequence[Conversation]) -> Sequence[list[torch.Tensor]]:
        feeds = [(answer.row, [answer.token]) for state in states for answer in state.open]
        began = time.monotonic()
        if self._network.shares:
            scores = iter(self._network.forward(feeds))
        else:
            scores = iter([self._network.forward([feed])[0] for feed in feeds])
        self._portions.note_writing(time.monotonic() - began)
        return [[next(scores) for _ in state.open] for state in states]

    def _begin(self, state: Conversation, scores: torch.Tensor) -> None:
        """Take up as many answers as are wanted, all behind the same prompt."""
        job = state.job
        sampling = Sampling(
            temperature=job.temperature,
            top_k=job.top_k,
            top_p=job.top_p,
            presence_penalty=job.presence_penalty,
            frequency_penalty=job.frequency_penalty,
            logit_bias=job.logit_bias,
            banned=self._banned,
            repetition_penalty=self._repetition_penalty,
        )
        for index in range(job.n):
            row = state.row if index == job.n - 1 else state.row.copy(state.row.length)
            sampler = Sampler(sampling, (state.seed + index) % (MAX_SEED + 1), state.prompt)
            guide = state.guide.copy() if state.guide is not None else None
            calls = CallReader(job.callable) if job.callable else None
            stops = job.stop if not job.must_call else ()  # they end texts
            writer = Writer(self._tokenizer, stops, state.prompt if job.goes_on else ())
            state.answers.append(Answer(index, row, sampler, writer, guide, calls))
        for answer in state.answers:
            self._take(state, answer, scores)

    def _take(self, state: Conversation, answer: Answer, scores: torch.Tensor) -> None:
        """Choose an answer's next token, and emit the text that is certain by it."""
        guide = answer.guide
        answer.token = answer.sampler.choose(scores, guide.allowed() if guide is not None else None)
        answer.num_tokens += 1
        state.run.count(completion_tokens=1)
        text = ""
        if answer.token in self._ends:
            answer.finish_reason = "stop"
        else:
            if state.job.top_logprobs is not None:
                chosen = describe(scores, answer.token, state.job.top_logprobs)
                answer.waiting.append((answer.writer.num_decoded, self._told(chosen)))
            text = answer.writer.add(answer.token)
            if guide is not None:
                guide.take(answer.token)
            if answer.writer.is_stopped or (guide is not None and guide.is_over):
                answer.finish_reason = "stop"
            elif answer.num_tokens == state.limit:
                answer.finish_reason = "length"
        if answer.finish_reason is not None and not answer.writer.is_stopped:
            text += answer.writer.finish()
            if answer.writer.is_stopped:
                answer.finish_reason = "stop"
        self._emit(state.run, answer, text, is_parallel=state.job.parallel_tool_calls)

    def _emit(self, run: Run, answer: Answer, text: str, *, is_parallel: bool) -> None:
        """Hand on text, the tokens that are out with it, and calls that are whole."""
        num_out = answer.writer.num_released
        is_all = answer.finish_reason is not None and not answer.writer.is_stopped
        told = [token for start, token in answer.waiting if start < num_out or is_all]
        answer.waiting = [(start, token) for start, token in answer.waiting if start >= num_out and not is_all]
        calls: list[Call] = []
        if answer.calls is not None:
            found = list(answer.calls.add(text))
            if answer.finish_reason is not None:
                found += answer.calls.finish()
            text = "".join(part for part in found if isinstance(part, str))
            calls = [part for part in found if isinstance(part, Call)]
            if calls and not is_parallel:
                calls, text, answer.finish_reason = calls[:1], "", "stop"
            if answer.finish_reason == "stop" and answer.calls.num_calls:
                answer.finish_reason = "tool_calls"
        if text or told or calls or answer.finish_reason is not None:
            run.emit(Piece(answer.index, text, told, calls, answer.finish_reason))

    def _told(self, chosen: Chosen) -> Token:
        likeliest = [self._token(token, logprob) for token, logprob in chosen.likeliest]
        return self._token(chosen.token, chosen.logprob, likeliest)

    def _token(self, token: int, logprob: float, likeliest: Sequence[Token] = ()) -> Token:
        return Token(self._vocabulary.text(token), self._vocabulary.bytes(token), logprob, likeliest)


def choose_packing(settings: Settings, device: torch.device) -> Packing:
    """Say how linear layers are kept: `auto` takes 16 bits on a CPU, unless the operator chose how all is kept.

    Raises:
        ModelUnavailable: layers cannot be packed on the device.
    """
    can_pack = is_supported(device)
    if settings.text_packing == "auto":
        return "float16" if can_pack and settings.dtype == "auto" else "none"
    if settings.text_packing != "none" and not can_pack:
        raise ModelUnavailable(
            f"ATELIER_TEXT_PACKING={settings.text_packing} needs a CPU that FBGEMM knows, and the model runs on "
            f"{device}; leave it out"
        )
    return settings.text_packing


def as_list(value: int | list[int] | None) -> list[int]:
    """Read what a model's settings give as nothing, one token or several."""
    return value if isinstance(value, list) else [] if value is None else [value]
