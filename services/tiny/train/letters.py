"""Letters as sounds, drawn by numbers: what is said is a row of short chords; knows no network.

A voice is a pitch. A letter or digit is a chord: the pitch itself and two of its overtones, for each another pair.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000
FRAME_RATE = 75  # frames a second
FRAME = SAMPLE_RATE // FRAME_RATE  # samples
VOICES: Mapping[str, int] = {"bass": 150, "tenor": 225, "alto": 300, "soprano": 450}  # Hz: whole periods in each frame
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
GAP = " "  # stands for all that is no letter
END = "."  # a pause after a sentence
PAIRS = tuple(itertools.combinations(range(2, 11), 2))  # of overtones, for each letter
LOUDNESS = 0.25  # of each of the three
NUM_FRAMES = 6  # of a letter, and of a gap: the sound swells in the first, fades in the fifth, and rests in the last
DOUBLED = 0.12  # of the letters of made up words come twice
Samples = NDArray[np.floating[Any]]


def chord(letter: str, voice: str) -> Samples:
    """Sound a letter, or be silent: samples of shape (NUM_FRAMES * FRAME,)."""
    if letter not in LETTERS:
        return np.zeros(NUM_FRAMES * FRAME)
    turns = 2 * np.pi * VOICES[voice] * np.arange(NUM_FRAMES * FRAME) / SAMPLE_RATE
    overtones = (1, *PAIRS[LETTERS.index(letter)])
    return LOUDNESS * _swell() * sum(np.sin(overtone * turns) for overtone in overtones)


def say(text: str, voice: str) -> Samples:
    """Sound a text of LETTERS, GAP and END."""
    return np.concatenate([chord(letter, voice) for letter in text])


def made_up(chance: random.Random, length: int) -> str:
    """Make up words of letters by chance, so many letters and gaps in all."""
    text = ""
    while len(text) < length:
        letters = chance.choices(LETTERS, k=chance.randint(1, 8))
        text += "".join(letter * (1 + (chance.random() < DOUBLED)) for letter in letters) + GAP
    return text[: length - 1] + chance.choice(LETTERS) if length else ""


def _swell() -> Samples:
    """How loud each sample of a letter is."""
    slope = np.sin(np.pi / 2 * (np.arange(FRAME) + 0.5) / FRAME) ** 2
    parts: Sequence[Samples] = (slope, np.ones((NUM_FRAMES - 3) * FRAME), slope[::-1], np.zeros(FRAME))
    return np.concatenate(parts)
