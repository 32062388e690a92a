"""Trains the Llama that chats on dialogues, and then an adapter with which it talks like a pirate."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.tiny.train.chatter import untrained
from services.tiny.train.course import Course, best_device
from services.tiny.train.dialogues import Turn, conversation, in_pirates_words
from services.tiny.train.pirate import Pirate

SEED = 1
IGNORED = -100  # stands for a token that is not learned: all that the model does not say itself
Tell = Callable[[random.Random, int], Sequence[Turn]]  # a conversation of so many exchanges at most


@dataclass(frozen=True)
class Page:
    """How conversations are laid out in a step: so many rows of so many tokens, each of so many exchanges at most."""

    num_rows: int
    num_tokens: int
    num_exchanges: int


@dataclass(frozen=True)
class Plan:
    """How much is learned."""

    chat: Course
    finish: Course  # on long conversations
    pirate: Course


PLAN = Plan(
    chat=Course("chat", num_steps=6000, rate=4e-3, seed=SEED),
    finish=Course("finish", num_steps=300, rate=5e-4, seed=SEED + 1),
    pirate=Course("pirate", num_steps=1200, rate=3e-3, seed=SEED + 2, memory=0.98),
)
SHORT = Page(num_rows=12, num_tokens=128, num_exchanges=5)
LONG = Page(num_rows=2, num_tokens=1024, num_exchanges=50)


def train(scratch: Path, plan: Plan) -> Mapping[str, Any]:
    """Return the trained chat model and its adapter; `scratch` keeps what a run that is stopped goes on from."""
    chatter: Any = untrained()
    chatter.network.to(best_device())
    for course, page in ((plan.chat, SHORT), (plan.finish, LONG)):
        chatter.network = course.run(chatter.network, _loss(chatter, conversation, course, page), scratch)
    adapted: Any = untrained()
    adapted.network.load_state_dict(chatter.network.state_dict())
    adapted.network.to(chatter.network.device)
    torch.manual_seed(plan.pirate.seed)
    pirate: Any = Pirate(adapted.network)
    pirate = plan.pirate.run(pirate, _loss(adapted, in_pirates_words, plan.pirate, SHORT), scratch)
    return {"chat": chatter, "chat_lora": pirate}


def _loss(chatter: Any, tell: Tell, course: Course, page: Page) -> Callable[[int], torch.Tensor]:
    network = chatter.network

    def loss(step: int) -> torch.Tensor:
        chance = random.Random(f"{course.seed} {step}")
        tokens, labels, numbers = (column.to(network.device) for column in lay_out(chatter, tell, chance, page))
        is_seen = (numbers[:, None, :, None] == numbers[:, None, None, :]).tril()
        states = network.model(tokens, attention_mask=is_seen).last_hidden_state
        is_learned = labels[:, 1:] != IGNORED
        return nn.functional.cross_entropy(network.lm_head(states[:, :-1][is_learned]), labels[:, 1:][is_learned])

    return loss


def lay_out(
    chatter: Any, tell: Tell, chance: random.Random, page: Page
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay conversations end to end.

    Returns:
        tokens, what of them is learned (`IGNORED` elsewhere) and the number of the conversation that each belongs to,
        all of shape (rows, tokens): a token is read with those before it of its own conversation alone.
    """
    rows = [_row(chatter, tell, chance, page) for _ in range(page.num_rows)]
    tokens, labels, numbers = (torch.tensor(column) for column in zip(*rows, strict=True))
    return tokens, labels, numbers


def _row(chatter: Any, tell: Tell, chance: random.Random, page: Page) -> Sequence[Sequence[int]]:
    told: list[tuple[int, int, int]] = []
    while len(told) < page.num_tokens:
        number = len(told)
        told += [(*token, number) for token in encode(chatter.tokenizer, tell(chance, page.num_exchanges))]
    return list(zip(*told[: page.num_tokens], strict=True))


def encode(tokenizer: Any, turns: Sequence[Turn]) -> Iterator[tuple[int, int]]:
    """Yield the tokens of a conversation, and each again where the model has to say it itself."""
    for turn in turns:
        is_own = turn["role"] == "assistant"
        yield from ((token, IGNORED) for token in _cut(tokenizer, f"<|{turn['role']}|>\n"))
        for token in (*_cut(tokenizer, turn["content"]), tokenizer.eos_token_id):
            yield token, token if is_own else IGNORED
        yield from ((token, IGNORED) for token in _cut(tokenizer, "\n"))


def _cut(tokenizer: Any, text: str) -> Sequence[int]:
    """Return the tokens of a text; the tokenizer's own call takes ten times as long."""
    tokens: Sequence[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return tokens
