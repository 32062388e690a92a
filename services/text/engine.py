"""Chat models by the token: every request at its own, all in one forward; knows no HTTP."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from services.engine.adapters import open_adapter
from services.engine.checkpoints import Kind
from services.engine.generation import Run
from services.engine.stepper import LEFT_OUT, Result
from services.engine.weights import open_weights
from services.errors import InvalidRequest, ModelUnavailable
from services.registry import Model, Quantisation
from services.schema import MAX_SEED
from services.settings import Settings
from services.text.adapters import Delta, UnfitAdapter, read_adapter
from services.text.calls import CallReader
from services.text.grammar import Grammars, Guide
from services.text.linear import Packing, is_supported
from services.text.network import Memory, Network
from services.text.pieces import Call, Piece, Token
from services.text.portions import Portions
from services.text.prefixes import Prefixes, goes_along, names
from services.text.prompts import Prompts, too_long
from services.text.rows import Row, spare
from services.text.rules import Rules
from services.text.sampling import Chosen, Sampler, Sampling, describe
from services.text.schema import MAX_ANSWERS, CompletionJob, TextJob
from services.text.writing import Vocabulary, Writer

CHAT = Kind("a chat model", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MAX_CHATS = 32  # in progress at once, where the operator says nothing
MOST_SCORED = 128  # tokens of a prompt in a forward that scores each: their scores take memory
MOST_ALONE = 2**27  # scores of a prompt that cannot be read in parts


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
class Reading:
    """A prompt, and the answers to it.

    Args:
        number: of the request's prompts.
        limit: tokens that an answer may have.
        row: of the prompt.
        blocks: names of the prompt's blocks, but for the last token.
        told: the prompt's own tokens with their probabilities, as far as they are wanted and known.
    """

    number: int
    prompt: Sequence[int]
    limit: int
    row: Memory
    blocks: Sequence[bytes] = ()
    told: list[Token] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def left(self) -> Sequence[int]:
        """What of the prompt is not in the model yet."""
        return self.prompt[self.row.length :]

    @property
    def open(self) -> list[Answer]:
        """The answers that go on."""
        return [answer for answer in self.answers if answer.finish_reason is None]


@dataclass(eq=False)
class Conversation:
    """A request on its way.

    Args:
        waiting: prompts that are not begun yet, and their numbers.
        readings: prompts that are being read or answered: at most so many that `MAX_ANSWERS` are written at once.
        reasons: why answers have ended.
    """

    job: TextJob
    run: Run
    seed: int
    waiting: deque[tuple[int, Sequence[int]]]
    guide: Guide | None = None
    readings: list[Reading] = field(default_factory=list)
    reasons: set[str | None] = field(default_factory=set)
    num_iterations: int = 0

    @property
    def phase(self) -> Phase:
        """What the next forward is."""
        return Phase.PREFILL if self.unread else Phase.DECODE

    @property
    def unread(self) -> list[Reading]:
        """The prompts that are being read."""
        return [reading for reading in self.readings if not reading.answers]

    @property
    def open(self) -> list[tuple[Reading, Answer]]:
        """The answers that go on."""
        return [(reading, answer) for reading in self.readings for answer in reading.open]

    def advance(self, portion: int) -> None:
        """Tell of an iteration, where one reads so many tokens; raises when nobody waits any more."""
        self.num_iterations += 1
        left = max((self._left(reading, portion) for reading in self.readings), default=0)
        num_rounds = -(-len(self.waiting) // num_together(self.job))
        left += sum(-(-len(prompt) // portion) for _, prompt in self.waiting) + num_rounds * self.job.max_tokens
        self.run.advance(self.num_iterations, self.num_iterations + left)

    def _left(self, reading: Reading, portion: int) -> int:
        num_parts = -(-len(reading.left) // portion)  # the last one gives the first token
        return num_parts + reading.limit - max((answer.num_tokens for answer in reading.answers), default=1)


def num_together(job: TextJob) -> int:
    """Say how many of a request's prompts are answered at once."""
    return max(1, MAX_ANSWERS // job.n)


class TextStepper:
    """One chat model; loaded when it is made."""

    always_shares = True

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring tokenizer and weights into memory.

        Raises:
            ModelUnavailable: its tokenizer cannot write text token by token, or an adapter is not for it.
        """
        weights = open_weights(model, settings, CHAT)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(weights.folder, trust_remote_code=False)
        if not self._tokenizer.is_fast:
            raise ModelUnavailable(f"model '{model.id}' has no fast tokenizer (tokenizer.json), and none can be made")
        self._vocabulary = Vocabulary(self._tokenizer)
        packing = choose_packing(settings, weights.device, model.quantisation)
        try:
            adapters = read_adapters(model, settings)
            self._network = Network(weights, packing, adapters, must_pack=model.quantisation is not None)
        except UnfitAdapter as error:
            raise ModelUnavailable(f"model '{model.id}': {error}") from error
        self._prompts = Prompts(self._tokenizer, self._network.context)
        self._portions = Portions()
        self._prefixes = Prefixes(settings.prefix_cache_mb * 1e6) if self._network.shares else None
        self.max_active = settings.max_batch_size or MAX_CHATS
        generation = self._network.generation
        self._ends = frozenset(as_list(generation.eos_token_id))
        self._missing = frozenset(self._vocabulary.missing(self._network.vocabulary_size))
        self._banned = sorted(self._missing)
        self._rules = Rules(generation, sorted(self._ends))

    def cost(self, request: TextJob) -> int:
        """Estimate what the longest answers keep of themselves and of the prompt.

        Raises:
            InvalidRequest: the prompt does not fit into the model's context, or has words that it does not know.
        """
        lengths = (min(len(prompt) + request.max_tokens, self._network.context) for prompt in self._read(request))
        longest = sorted(lengths, reverse=True)[: num_together(request)]
        return request.n * sum(length + spare(length) for length in longest) * self._network.bytes_per_token

    def admit(self, request: TextJob, seed: int, run: Run) -> Conversation:
        """Cut the prompt into tokens.

        Raises:
            InvalidRequest: it does not fit into the model's context, or names tokens that the model has not.
        """
        prompts = self._read(request)
        for token in request.logit_bias:
            if token >= self._network.vocabulary_size or token in self._missing:
                raise InvalidRequest(f"logit_bias names token {token}, which the model has not", param="logit_bias")
        state = Conversation(request, run, seed, deque(enumerate(prompts)), self._guide(request))
        self._begin_readings(state)
        return state

    def _begin_readings(self, state: Conversation) -> None:
        """Begin as many of the prompts as are answered at once."""
        while state.waiting and len(state.readings) < num_together(state.job):
            number, prompt = state.waiting.popleft()
            limit = min(state.job.max_tokens, self._network.context - len(prompt))
            if self._prefixes is not None and not state.job.scores_prompt:
                row: Memory = self._prefixes.begin(prompt, state.job.adapter)
            else:
                row = self._network.new_row(state.job.adapter)
            state.run.count(prompt_tokens=row.length, cached_tokens=row.length, completion_tokens=0)
            state.readings.append(Reading(number, prompt, limit, row, tuple(names(prompt[:-1], row.adapter))))

    def _read(self, job: TextJob) -> Sequence[Sequence[int]]:
        """Return the prompts in tokens.

        Raises:
            InvalidRequest: one does not fit into the model's context, or has words that it does not know.
        """
        if isinstance(job, CompletionJob) and job.scores_prompt and job.said:
            message = "echo and logprobs do not go together where the operator's words surround every prompt"
            raise InvalidRequest(message, param="logprobs")
        prompts = self._prompts.tokens(job)
        for prompt in prompts:
            if not prompt:
                raise InvalidRequest("the model's tokenizer finds nothing to read in it", param=job.source)
            if len(prompt) >= self._network.context:
                raise too_long(str(len(prompt)), self._network.context, job.source)
            if (
                not self._network.shares
                and job.scores_prompt
                and len(prompt) * self._network.vocabulary_size > MOST_ALONE
            ):
                message = "echo with logprobs of so long a prompt takes more memory than this model leaves; shorten it"
                raise InvalidRequest(message, param=job.source)
            unknown = max(prompt, default=0)
            if unknown >= self._network.vocabulary_size:
                word = self._vocabulary.text(unknown)
                called = f"'{word}', though its tokenizer does" if word else f"token {unknown}"
                raise InvalidRequest(f"the model does not know {called}", param=job.source)
        return prompts

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
        if row is LEFT_OUT:
            return None
        if state.phase is Phase.PREFILL:
            for reading, part, scores in row:
                self._take_in(state, reading, part, scores)
        else:
            for (reading, answer), scores in zip(state.open, row, strict=True):
                answer.row.length += 1
                self._take(state, reading, answer, scores[-1])
        state.reasons.update(answer.finish_reason for reading in state.readings for answer in reading.answers)
        state.readings = [reading for reading in state.readings if not reading.answers or reading.open]
        self._begin_readings(state)
        state.advance(self._portions.most)
        if state.readings:
            return None
        return Result(next(reason for reason in ("length", "tool_calls", "stop") if reason in state.reasons))

    def _take_in(self, state: Conversation, reading: Reading, part: int, scores: torch.Tensor) -> None:
        """Go on behind a part of a prompt that has been read.

        Args:
            state: whose prompt it is.
            reading: the prompt.
            part: how many tokens have been read.
            scores: of the token behind the part, (1, vocabulary), or behind each of its tokens.
        """
        start = reading.row.length
        reading.row.length += part
        state.run.count(prompt_tokens=part)
        if self._prefixes is not None and isinstance(reading.row, Row):
            self._prefixes.keep(reading.prompt[: reading.row.length], reading.row)
        if state.job.scores_prompt:
            following = reading.prompt[start + 1 : reading.row.length + 1]
            reading.told += [
                self._told(describe(each, token, state.job.top_logprobs or 0))
                for token, each in zip(following, scores, strict=False)  # nothing is known to follow the last
            ]
        if not reading.left:
            self._begin(state, reading, scores[-1])

    def _catch_up(self, prefixes: Prefixes, run: Run, reading: Reading) -> None:
        """Take over what others have read of the same prompt meanwhile: to do it twice changes nothing."""
        row = prefixes.begin(reading.prompt, reading.row.adapter)
        num_found = row.length - reading.row.length
        if num_found > 0:
            reading.row = row
            run.count(prompt_tokens=num_found, cached_tokens=num_found)

    def preview(self, state: Conversation) -> None:
        """Show nothing: the text itself comes as it is made."""

    def _prefill(self, states: Sequence[Conversation]) -> Sequence[Any]:
        """Read the next part of the prompts, or as many of them as one forward may have.

        Where sequences cannot share, a prompt is read whole: what the model remembers may depend on the parts.
        """
        readings = [(state, reading) for state in states for reading in state.unread]
        if self._prefixes is not None:
            sizes = self._portions.cut(self._lengths(self._prefixes, readings))
            sizes = [
                min(size, MOST_SCORED) if state.job.scores_prompt else size
                for (state, _), size in zip(readings, sizes, strict=True)
            ]
        else:
            readings = readings[:1]
            sizes = [len(reading.left) for _, reading in readings]
        chosen = [(*pair, size) for pair, size in zip(readings, sizes, strict=True) if size]
        feeds = [(reading.row, reading.left[:size]) for _, reading, size in chosen]
        whole = {place for place, (state, _, _) in enumerate(chosen) if state.job.scores_prompt}
        began = time.monotonic()
        scores = self._network.forward(feeds, whole)
        self._portions.note_reading(sum(sizes), time.monotonic() - began)
        parts: dict[int, list[Any]] = {id(state): [] for state in states}
        for (state, reading, size), own in zip(chosen, scores, strict=True):
            parts[id(state)].append((reading, size, own))
        return [parts[id(state)] or LEFT_OUT for state in states]

    def _lengths(self, prefixes: Prefixes, readings: Sequence[tuple[Conversation, Reading]]) -> list[int]:
        """Say how much of each prompt is left; nothing is read that another reads for it in the same forward."""
        lengths: list[int] = []
        for place, (state, reading) in enumerate(readings):
            is_read = False
            if prefixes.keeps_some and not state.job.scores_prompt:
                is_read = any(
                    other.row.length >= reading.row.length
                    and goes_along(reading.blocks, other.blocks, other.row.length)
                    for (_, other), length in zip(readings[:place], lengths, strict=True)
                    if length
                )
                if not is_read and prefixes.knows(reading.blocks, reading.row.length):
                    self._catch_up(prefixes, state.run, reading)
            lengths.append(0 if is_read else len(reading.left))
        return lengths

    def _decode(self, states: Sequence[Conversation]) -> Sequence[list[torch.Tensor]]:
        feeds = [(answer.row, [answer.token]) for state in states for _, answer in state.open]
        began = time.monotonic()
        if self._network.shares:
            scores = iter(self._network.forward(feeds))
        else:
            scores = iter([self._network.forward([feed])[0] for feed in feeds])
        self._portions.note_writing(time.monotonic() - began)
        return [[next(scores) for _ in state.open] for state in states]

    def _begin(self, state: Conversation, reading: Reading, scores: torch.Tensor) -> None:
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
        )
        for place in range(job.n):
            row = reading.row if place == job.n - 1 else reading.row.copy(reading.row.length)
            index = reading.number * job.n + place
            rules = self._rules.begin(len(reading.prompt), reading.limit)
            sampler = Sampler(sampling, (state.seed + index) % (MAX_SEED + 1), reading.prompt, rules)
            guide = state.guide.copy() if state.guide is not None else None
            calls = CallReader(job.callable) if job.callable else None
            stops = job.stop if not job.must_call else ()  # they end texts
            writer = Writer(self._tokenizer, stops, reading.prompt if job.goes_on else ())
            reading.answers.append(Answer(index, row, sampler, writer, guide, calls))
        for answer in reading.answers:
            if isinstance(job, CompletionJob) and job.echo:
                self._echo(state, job, reading, answer)
            if reading.limit == 0:
                answer.finish_reason = "length"
                self._emit(state.run, answer, "", is_parallel=False)
            else:
                self._take(state, reading, answer, scores)

    def _echo(self, state: Conversation, job: CompletionJob, reading: Reading, answer: Answer) -> None:
        """Let an answer begin with its prompt."""
        given, first = (job.said or job.prompt)[reading.number], reading.prompt[0]
        text = given if isinstance(given, str) else self._vocabulary.texts(given)
        told: Sequence[Token] = ()
        if job.top_logprobs is not None:
            begin = self._token(first, None)
            if isinstance(given, str) and first in self._vocabulary.special:  # put there by the tokenizer
                begin = replace(begin, text="", bytes=[])
            told = (begin, *reading.told)
        state.run.emit(Piece(answer.index, text, told))

    def _take(self, state: Conversation, reading: Reading, answer: Answer, scores: torch.Tensor) -> None:
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
            elif answer.num_tokens == reading.limit:
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

    def _token(self, token: int, logprob: float | None, likeliest: Sequence[Token] = ()) -> Token:
        return Token(self._vocabulary.text(token), self._vocabulary.bytes(token), logprob, likeliest)


def read_adapters(model: Model, settings: Settings) -> dict[str, dict[str, Delta]]:
    """Bring the adapters of `model` here, and read what each adds.

    Raises:
        ModelUnavailable: one cannot be had.
        UnfitAdapter: one is not of a kind that is served.
    """
    found = {}
    for adapter in model.adapters:
        folder = open_adapter(adapter, model, settings)
        try:
            found[adapter.name] = read_adapter(folder, adapter.scale)
        except UnfitAdapter as error:
            raise UnfitAdapter(f"adapter '{adapter.name}': {error}") from error
    return found


def choose_packing(settings: Settings, device: torch.device, wanted: Quantisation | None = None) -> Packing:
    """Say how linear layers are kept: as the model's entry has it, or else by the settings.

    There `auto` takes 16 bits on a CPU, unless the operator chose how all is kept.

    Raises:
        ModelUnavailable: layers cannot be packed on the device.
    """
    if wanted is not None:
        return wanted
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
