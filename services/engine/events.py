"""What a generation tells whoever follows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Queued:
    """Accepted; `position` requests are ahead. It comes again when that changes."""

    position: int


@dataclass(frozen=True)
class Started:
    """The model works on it."""


@dataclass(frozen=True)
class Progress:
    """One iteration is over: encoding, token, denoising step, sentence or decoded piece `step` of `steps`."""

    step: int
    steps: int
    eta: float | None = field(default=None, compare=False)  # seconds until the last one; None: not known yet


@dataclass(frozen=True)
class Preview:
    """A sketch of the result after iteration `step`: uint8 of shape (height, width, 3), small."""

    step: int
    picture: Any


@dataclass(frozen=True)
class Output:
    """A piece of the result: text, a picture or frame (uint8, (height, width, 3)), a `Sound` or a `Mesh`."""

    data: Any


@dataclass(frozen=True)
class Done:
    """The result is whole; `usage` counts what was made in the modality's own units."""

    usage: Mapping[str, float] = field(default_factory=dict)
    finish_reason: str = "stop"


Event = Queued | Started | Progress | Preview | Output | Done
