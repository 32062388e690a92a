"""Which token is next: from a model's scores, by a request's own parameters and random numbers; knows no batch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from services.engine.outputs import overflowed

Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of all tokens so far and their scores, (1, n) and (1, v)

COLDEST = 1e-3  # below this temperature the likeliest token is as good as certain, and dividing by it overflows


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: the scores are divided by it; 0 always takes the likeliest.
        top_k: only so many of the likeliest; 0: any.
        top_p: only the likeliest whose probabilities first add up to it.
        presence_penalty: off the score of every token that there is already.
        frequency_penalty: off it for each time that it is there.
        logit_bias: onto the scores of tokens.
        banned: tokens that are never chosen.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned: Sequence[int] = ()


@dataclass(frozen=True)
class Chosen:
    """A token, and the natural logarithms of probabilities as the model gives them, before any parameter.

    Args:
        likeliest: tokens and theirs, the likeliest first, as many as were asked for.
    """

    token: int
    logprob: float
    likeliest: Sequence[tuple[int, float]]


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Sequence[int] = (), rules: Rule | None = None) -> None:
        """Begin with a seed, behind `prompt`; `rules` are the checkpoint's own, and come before the caller's."""
        self._sampling = sampling
        self._rules = rules
        self._tokens = list(prompt) if rules else []
        self._generator = torch.Generator().manual_seed(seed)
        self._counts: Counter[int] = Counter()
        self._banned = torch.tensor(sampling.banned, dtype=torch.long)
        self._biased = torch.tensor(list(sampling.logit_bias), dtype=torch.long)
        self._bias = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32)

    def choose(self, scores: torch.Tensor, allowed: torch.Tensor | None = None) -> int:
        """Choose the next token.

        Args:
            scores: float32 of shape (vocabulary,).
            allowed: which tokens a grammar allows, bool of the same shape; None: all.

        Raises:
            GenerationFailed: the model's numbers overflowed.
        """
        if not scores.max().isfinite():  # nor is it where one of them is no number
            raise overflowed()
        token = self._draw(self._adjusted(scores, allowed))
        self._counts[token] += 1
        if self._rules:
            self._tokens.append(token)
        return token

    def _adjusted(self, scores: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        sampling = self._sampling
        own, scores = scores, scores.clone()
        if self._rules:
            scores = self._rules(torch.tensor([self._tokens]), scores[None])[0]
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            counted = torch.tensor(list(self._counts), dtype=torch.long)
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            scores[counted] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        scores[self._biased] += self._bias
        scores[self._banned] = -torch.inf
        if allowed is not None:
            scores[~allowed] = -torch.inf
            if scores.max() == -torch.inf:  # where only banned tokens go on, they must do
                scores = own.masked_fill(~allowed, -torch.inf)
        return scores

    def _draw(self, scores: torch.Tensor) -> int:
        sampling = self._sampling
        if sampling.temperature < COLDEST:
            return int(scores.argmax())
        number = torch.rand((), generator=self._generator, dtype=torch.float64)  # drawn once a token, whatever follows
        tokens = None
        if sampling.top_k and sampling.top_k < len(scores):
            scores, tokens = scores.topk(sampling.top_k)
        elif sampling.top_p < 1:
            scores, tokens = scores.sort(descending=True)
        sums = (scores.double() / sampling.temperature).softmax(0).cumsum(0)
        if sampling.top_p < 1:
            sums = sums[: int((sums < sampling.top_p).sum()) + 1]
        place = int(torch.searchsorted(sums, number * sums[-1], right=True).clamp(max=len(sums) - 1))
        return place if tokens is None else int(tokens[place])


def describe(scores: torch.Tensor, token: int, number: int) -> Chosen:
    """Say how likely `token` was, and the `number` likeliest.

    Raises:
        GenerationFailed: the model's numbers overflowed.
    """
    logprobs = scores.log_softmax(0)
    if logprobs.isnan().any():
        raise overflowed()
    values, tokens = logprobs.topk(min(number, len(scores)))
    return Chosen(token, float(logprobs[token]), list(zip(tokens.tolist(), values.tolist(), strict=True)))
