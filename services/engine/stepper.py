"""What a modality knows: how its requests advance, one forward at a time and several requests to a forward."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.engine.generation import Run

State = TypeVar("State")

MAX_BATCH_SIZE = 8  # where the operator says nothing
LEFT_OUT: Final = object()  # a row of who had no part in the forward, as the others filled it, and has the next turn


@dataclass(frozen=True)
class Result:
    """What a model says when it is through with a request: why it ended."""

    finish_reason: str = "stop"


class Stepper(Protocol[State]):
    """A model in memory, run in phases: encoding, denoising, decoding. Every call comes from the engine's thread.

    The engine puts requests of the same key into one `forward`, and hands each its row of what came out. A forward
    changes no state: when it fails, the engine runs it again with fewer.
    """

    max_active: int  # requests that may be in progress at once, hence also the largest batch
    always_shares: bool  # nobody is better off by taking turns, and everybody is to go on; else that is measured

    def cost(self, request: Any) -> int:
        """Estimate the bytes that `request` takes while it runs; called by any thread, and may take a while.

        Raises:
            ServiceError: the request cannot be served, as is plain already.
        """

    def admit(self, request: Any, seed: int, run: Run) -> State:
        """Take a request up; cheap, no forward.

        Raises:
            ServiceError: the request cannot be served.
        """

    def key(self, state: State) -> Hashable | None:
        """Name what may share the next forward: the phase and the tensors' shapes; None: it runs alone."""

    def forward(self, states: Sequence[State]) -> Sequence[Any]:
        """Run the model once for all of them and return a row for each, or `LEFT_OUT`; change no state.

        Who is first has the next turn.
        """

    def advance(self, state: State, row: Any) -> Result | None:
        """Take the row in, tell `state`'s run what was made and of the iteration, and say when it is through.

        Raises:
            ServiceError: the request cannot be served.
            Cancelled: the caller left.
        """

    def preview(self, state: State) -> NDArray[np.uint8] | None:
        """Sketch what is coming, uint8 of shape (height, width, 3); None where there is nothing to see yet."""


class Generator(Protocol):
    """A model whose library knows one way only: from the first step to the last."""

    def generate(self, request: Any, seed: int, run: Run) -> Result:
        """Make what `request` asks for, telling `run` after each iteration.

        Raises:
            ServiceError: the request cannot be served.
        """


@dataclass(frozen=True, eq=False)
class Call:
    """A request to a `Generator`."""

    request: Any
    seed: int
    run: Run


class WholeCall:
    """Runs a `Generator` as a stepper of one long step: requests one after the other, cancelled between iterations."""

    max_active = 1
    always_shares = False

    def __init__(self, generator: Generator) -> None:
        """Wrap `generator`."""
        self._generator = generator

    def cost(self, request: Any) -> int:
        """Nothing beside it is in progress."""
        return 0

    def admit(self, request: Any, seed: int, run: Run) -> Call:
        """Keep it."""
        return Call(request, seed, run)

    def key(self, state: Call) -> None:
        """Alone."""

    def forward(self, states: Sequence[Call]) -> list[Result]:
        """Run the whole call."""
        return [self._generator.generate(state.request, state.seed, state.run) for state in states]

    def advance(self, state: Call, row: Result) -> Result:
        """Be through."""
        return row

    def preview(self, state: Call) -> None:
        """Show nothing."""
