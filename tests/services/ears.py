"""A judge of what the trained tiny speaker says: it writes down what it hears, and knows nothing of its training.

A letter or digit is a short tone: with two overtones of the second to the tenth, for each another pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789"
PAIRS = list(combinations(range(2, 11), 2))  # of the overtones, in the order of the signs
LOWEST, HIGHEST = 100.0, 600.0  # Hz
EAR = 0.008  # seconds over which loudness is felt
QUIET = 0.25  # of the loudest: what is weaker is silence
SHORT, PAUSE = 0.02, 0.06  # seconds: a tone lasts longer than the one, and words are further apart than the other
Samples = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Heard:
    """What is heard: letters, digits and gaps, and of each letter the pitch and how clean it is."""

    text: str
    pitches: Sequence[float]  # Hz
    cleanness: Sequence[float]  # dB: the tone's overtones above all else
    silence: float  # dB: letters above what is between words; infinite where there is one word or none
    seconds: float


def listen(samples: Samples, rate: int) -> Heard:
    """Write down what is said."""
    samples = samples.astype(np.float64)
    loudness = np.sqrt(np.convolve(samples**2, np.ones(round(EAR * rate)) / round(EAR * rate), "same"))
    spans = _spans(loudness > QUIET * np.quantile(loudness, 0.95), rate)
    signs, pitches, cleanness, pauses = "", [], [], list[Samples]()
    for place, (start, end) in enumerate(spans):
        before = spans[place - 1][1] if place else start
        if start - before > PAUSE * rate:
            signs += " "
            margin = round(EAR * rate)
            pauses.append(samples[before + margin : start - margin])
        middle = samples[start + (end - start) // 6 : end - (end - start) // 6]
        pitch = _pitch(middle, rate)
        sign, clean = _sign(middle, pitch, rate)
        signs += sign
        pitches.append(pitch)
        cleanness.append(clean)
    voiced = [samples[start:end] for start, end in spans]
    return Heard(signs, pitches, cleanness, _apart(voiced, pauses), len(samples) / rate)


def _spans(is_loud: NDArray[np.bool_], rate: int) -> Sequence[tuple[int, int]]:
    """List where it is loud, but for clicks."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_loud, [False]]).astype(int))).tolist()
    spans = zip(edges[::2], edges[1::2], strict=True)
    return [(start, end) for start, end in spans if end - start > SHORT * rate]


def _pitch(tone: Samples, rate: int) -> float:
    """Find how often it repeats itself in a second, by the shortest time after which it is nearly the same."""
    alike = np.correlate(tone, tone, "full")[len(tone) - 1 :]
    alike /= np.arange(len(tone), 0, -1)
    lags = np.arange(round(rate / HIGHEST), min(round(rate / LOWEST), len(tone) * 2 // 3))
    shortest = lags[np.argmax(alike[lags] > 0.8 * alike[lags].max())]
    period = _summit(alike, shortest, round(shortest / 2))
    times = max(1, int(len(tone) * 2 / 3 / period))
    return rate * times / _summit(alike, round(times * period), round(period / 4))


def _summit(values: Samples, near: int, reach: int) -> float:
    """Find where values are highest, between their places."""
    first = max(1, near - reach)
    top = first + int(np.argmax(values[first : near + reach + 1]))
    if top + 1 >= len(values):
        return float(top)
    left, here, right = values[top - 1 : top + 2]
    bend = left - 2 * here + right
    return top + (0.5 * (left - right) / bend if bend else 0.0)


def _sign(tone: Samples, pitch: float, rate: int) -> tuple[str, float]:
    """Name the pair of overtones that is strongest, and measure all ten against what is left, in dB."""
    turns = 2 * np.pi * pitch * np.arange(len(tone))[:, None] / rate * np.arange(1, 11)
    waves = np.concatenate([np.sin(turns), np.cos(turns)], axis=1)
    parts = np.linalg.lstsq(waves, tone, rcond=None)[0]
    strength = np.hypot(parts[:10], parts[10:])
    first, second = sorted((2 + np.argsort(strength[1:])[-2:]).tolist())
    left = tone - waves @ parts
    return SIGNS[PAIRS.index((first, second))], float(10 * np.log10((tone @ tone) / (left @ left + 1e-12)))


def _apart(voiced: Sequence[Samples], pauses: Sequence[Samples]) -> float:
    """Compare the power of two kinds of spans, in dB."""
    if not voiced or not pauses:
        return np.inf
    loud, quiet = (float(np.mean(np.concatenate(spans) ** 2)) for spans in (voiced, pauses))
    return float(10 * np.log10(loud / (quiet + 1e-12)))
