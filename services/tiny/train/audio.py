"""Trains the Bark that says letters: each stage by itself, on what the library's `generate` would show it.

The codec is written down, so that every sound has its tokens before anything is learned.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from services.tiny.audio import NUM_COARSE_BOOKS
from services.tiny.train.course import Course, best_device
from services.tiny.train.letters import END, VOICES, made_up
from services.tiny.train.speaker import (
    COARSE_HISTORY,
    COARSE_INFER,
    COARSE_PAD,
    COARSE_WINDOW,
    FINE_HISTORY,
    FINE_INPUT,
    MAX_COARSE_INPUT,
    MAX_TEXT,
    NUM_SEMANTIC,
    PARTS,
    RATIO,
    SIGNS,
    TEXT_OFFSET,
    Speaker,
    Tokens,
    semantic,
    untrained,
)
from services.tiny.train.speech_codec import NUM_BOOKS, NUM_CODES

SEED = 1
NUM_TEXTS, NUM_WINDOWS, NUM_PIECES = 4, 16, 8  # in a step of the semantic, the coarse and the fine stage
IGNORED = -100  # stands for a token that is not learned
NOBODY = 0.3  # of the texts are said by a voice that said nothing before


@dataclass(frozen=True)
class Plan:
    """How much is learned."""

    semantic: Course
    coarse: Course
    fine: Course


PLAN = Plan(
    semantic=Course("semantic", num_steps=1000, rate=3e-3, seed=SEED, memory=0.99),
    coarse=Course("coarse", num_steps=2500, rate=2e-3, seed=SEED + 1, memory=0.99),
    fine=Course("fine", num_steps=2000, rate=3e-3, seed=SEED + 2, memory=0.99),
)


def train(scratch: Path, plan: Plan) -> Speaker:
    """Return the trained speaker; `scratch` keeps what a run that is stopped goes on from."""
    speaker = untrained()
    spoken = Spoken(speaker)
    network: Any = speaker.network
    network.to(best_device())
    network.semantic = plan.semantic.run(network.semantic, _semantic_loss(speaker, plan.semantic), scratch)
    network.coarse_acoustics = plan.coarse.run(
        network.coarse_acoustics, _coarse_loss(network.coarse_acoustics, spoken, plan.coarse), scratch
    )
    network.fine_acoustics = plan.fine.run(
        network.fine_acoustics, _fine_loss(network.fine_acoustics, spoken, plan.fine), scratch
    )
    return speaker


class Spoken:
    """What texts sound like, in codes."""

    def __init__(self, speaker: Speaker) -> None:
        """Have every letter said by every voice."""
        self._frames = {
            (sign, voice): codes
            for voice in VOICES
            for sign, codes in zip(SIGNS, np.split(speaker.codes(SIGNS, voice), len(SIGNS), axis=1), strict=True)
        }

    def codes(self, text: str, voice: str) -> Tokens:
        """Say a text: (books, frames)."""
        return np.concatenate([self._frames[sign, voice] for sign in text], axis=1)


# --- semantic: what is written, sign by sign ---


def _semantic_loss(speaker: Speaker, course: Course) -> Callable[[int], torch.Tensor]:
    network: Any = speaker.network.semantic

    def loss(step: int) -> torch.Tensor:
        chance = random.Random(f"{course.seed} {step}")
        rows = [_reading(speaker, chance) for _ in range(NUM_TEXTS)]
        text, before, said = (part.to(network.device) for part in _columns(rows))
        embeds = network.input_embeds_layer
        infer = torch.full_like(text[:, :1], TEXT_OFFSET + len(speaker.tokenizer) + 4)
        shown = torch.cat([embeds(text) + embeds(before), embeds(infer), embeds(said[:, :-1].clamp(min=0))], dim=1)
        logits = network(inputs_embeds=shown).logits[:, MAX_TEXT:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten(), ignore_index=IGNORED)

    return loss


def _reading(speaker: Speaker, chance: random.Random) -> Sequence[Tokens]:
    """Lay out a text, what was said before, and what is to be said with its end."""
    text = made_up(chance, chance.randint(0, chance.choice((20, 20, 60, MAX_TEXT))))
    pad = TEXT_OFFSET + len(speaker.tokenizer)
    letters = np.array(speaker.tokenizer.convert_tokens_to_ids(list(text)), dtype=int) + TEXT_OFFSET
    before = semantic(made_up(chance, chance.randint(1, 100)) + END) if chance.random() > NOBODY else letters[:0]
    said = np.append(semantic(text + END) if text else letters[:0], NUM_SEMANTIC)
    return _padded(letters, MAX_TEXT, pad), _padded(before[-MAX_TEXT:], MAX_TEXT, NUM_SEMANTIC), said


# --- coarse: how it sounds, window by window ---


def _coarse_loss(network: Any, spoken: Spoken, course: Course) -> Callable[[int], torch.Tensor]:
    def loss(step: int) -> torch.Tensor:
        chance = random.Random(f"{course.seed} {step}")
        windows = [_window(spoken, chance) for _ in range(NUM_WINDOWS)]
        shown, learned = (part.to(network.device) for part in _columns(windows))
        logits = network(input_ids=shown[:, :-1].clamp(min=0)).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), learned[:, 1:].flatten(), ignore_index=IGNORED)

    return loss


def _window(spoken: Spoken, chance: random.Random) -> Sequence[Tokens]:
    text = made_up(chance, chance.randint(1, 20)) + END
    before = made_up(chance, chance.randint(1, 8)) + END if chance.random() > NOBODY else ""
    return chance.choice(list(windows(spoken, before, text, chance.choice(list(VOICES)))))


def windows(spoken: Spoken, before: str, text: str, voice: str) -> Iterator[Sequence[Tokens]]:
    """Lay out all windows of a text, as the library does.

    Args:
        spoken: what it sounds like.
        before: what the voice said before; empty where it said nothing.
        text: what it says now.
        voice: its name.

    Yields:
        what the stage sees and makes, and of that what it has to make (`IGNORED` elsewhere).
    """
    num_before = min(COARSE_HISTORY // RATIO, PARTS * len(before))  # semantic tokens
    said = semantic(before + text)[PARTS * len(before) - num_before :]
    sounds = _coarse(spoken, text, voice)
    history = sounds[:0]
    if before:  # the library leaves the last frame out
        history = _coarse(spoken, before, voice)[-num_before * RATIO : -NUM_COARSE_BOOKS]
    for start in range(0, len(sounds), COARSE_WINDOW):
        first = max(0, num_before + start // RATIO - COARSE_HISTORY // RATIO)
        read = _padded(said[first : first + MAX_COARSE_INPUT], MAX_COARSE_INPUT, COARSE_PAD)
        head = np.append(read, COARSE_INFER)
        heard = np.concatenate([history, sounds[:start]])[-COARSE_HISTORY:]
        tail = np.concatenate([heard, sounds[start : start + COARSE_WINDOW]])
        yield np.concatenate([head, tail]), np.concatenate([np.full_like(head, IGNORED), tail])


def _coarse(spoken: Spoken, text: str, voice: str) -> Tokens:
    """Say a text in the first two books, one after the other in every frame."""
    codes = spoken.codes(text, voice)[:NUM_COARSE_BOOKS]
    offsets = NUM_SEMANTIC + NUM_CODES * np.arange(NUM_COARSE_BOOKS)
    return (codes + offsets[:, None]).T.flatten()


# --- fine: the rest of the books ---


def _fine_loss(network: Any, spoken: Spoken, course: Course) -> Callable[[int], torch.Tensor]:
    def loss(step: int) -> torch.Tensor:
        chance = random.Random(f"{course.seed} {step}")
        pieces = [_piece(spoken, chance) for _ in range(NUM_PIECES)]
        codes, starts = (part.to(network.device) for part in _columns(pieces))
        is_new = torch.arange(FINE_INPUT, device=codes.device) >= starts
        losses = []
        for book in range(NUM_COARSE_BOOKS, NUM_BOOKS):
            shown = codes.clone()
            shown[:, :, book:] = torch.where(is_new[..., None], NUM_CODES, codes[:, :, book:])
            logits = network(book, shown).logits
            wanted = torch.where(codes[:, :, book] < NUM_CODES, codes[:, :, book], IGNORED)
            losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED))
        return torch.stack(losses).mean()

    return loss


def _piece(spoken: Spoken, chance: random.Random) -> Sequence[Tokens]:
    """Lay out what the stage sees of a speech, (frames, books), and where the new frames begin.

    What is not new is learned as well: the last window of a speech makes again what the one before has made.
    """
    codes = spoken.codes(made_up(chance, chance.randint(2, 14)), chance.choice(list(VOICES))).T
    first = chance.randrange(len(codes) // 2)
    codes = codes[first : first + FINE_INPUT]
    start = chance.randrange(min(FINE_HISTORY, len(codes) - 1) + 1) if chance.random() > NOBODY else 0
    return np.pad(codes, ((0, FINE_INPUT - len(codes)), (0, 0)), constant_values=NUM_CODES), np.array([start])


def _padded(tokens: Tokens, length: int, pad: int) -> Tokens:
    return np.pad(tokens, (0, length - len(tokens)), constant_values=pad)


def _columns(rows: Sequence[Sequence[Tokens]]) -> Sequence[torch.Tensor]:
    """Stack the parts of all rows, each as long as its longest."""
    columns = ([torch.from_numpy(part) for part in column] for column in zip(*rows, strict=True))
    return [nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=IGNORED) for column in columns]
