"""Any diffusers pipeline: its call as one long step where it has no stepper of its own; knows no modality."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.engine.generation import Run
from services.engine.stepper import Result

PREVIEW_CELLS = 16  # along the longer side: at most 128 pixels


def shrunk(latents: torch.Tensor) -> torch.Tensor:
    """Average latents, (…, height, width), to a size that is decoded in no time: what a preview is made of."""
    scale = min(1.0, PREVIEW_CELLS / max(latents.shape[-2:]))
    height, width = (max(1, round(cells * scale)) for cells in latents.shape[-2:])
    return torch.nn.functional.adaptive_avg_pool2d(latents, (height, width))


@dataclass(frozen=True)
class PipelineCall:
    """A `Generator` that makes one call to a pipeline: slower than a stepper where several ask at once, never wrong.

    The library's callback after each denoising step tells of progress and stops the call: it raises.

    Args:
        pipeline: any whose call takes `callback_on_step_end` and `generator`.
        arguments: what the call is given for a request.
        hand_on: emits what the call returned, and counts it.
        made: what each iteration makes, by unit.
        decoder: called by the pipeline once for each piece after the steps; each is an iteration too.
        num_pieces: how many pieces a request has.
        preview: sketches latents, uint8 of shape (height, width, 3); it may call the decoder.
    """

    pipeline: Any
    arguments: Callable[[Any], Mapping[str, Any]]
    hand_on: Callable[[Any, Any, Run], None]
    made: Callable[[Any], Mapping[str, int]]
    decoder: torch.nn.Module | None = None
    num_pieces: Callable[[Any], int] = lambda request: 0
    preview: Callable[[torch.Tensor], NDArray[np.uint8]] | None = None

    def generate(self, request: Any, seed: int, run: Run) -> Result:
        """Make the call; its last iteration is to hand on what was made.

        Raises:
            GenerationFailed: the model's numbers overflowed.
        """
        watch = Watch(run, self.num_pieces(request) + 1, self.made(request), self.preview)
        with watch.following(self.decoder):
            made = self.pipeline(
                **self.arguments(request),
                generator=torch.Generator().manual_seed(seed),
                callback_on_step_end=watch.denoised,
            )
        self.hand_on(request, made, run)
        watch.advance()
        return Result()


class Watch:
    """Tells the run about iterations: steps first, then pieces."""

    def __init__(
        self,
        run: Run,
        num_pieces: int,
        made: Mapping[str, int],
        preview: Callable[[torch.Tensor], NDArray[np.uint8]] | None,
    ) -> None:
        """Expect `num_pieces` iterations after the steps; each but the last of them makes `made`."""
        self._run = run
        self._num_pieces = num_pieces
        self._made = made
        self._preview = preview
        self._is_sketching = False
        self._step = self._steps = 0

    def denoised(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Count a denoising step: the library's callback."""
        self._steps = pipeline.num_timesteps + self._num_pieces
        self.passed()
        if self._preview is not None:
            self._is_sketching = True
            self._run.sketch(partial(self._preview, tensors["latents"]))
            self._is_sketching = False
        return tensors

    @contextmanager
    def following(self, decoder: torch.nn.Module | None) -> Iterator[None]:
        """Count the calls to `decoder`."""
        if decoder is None:
            yield
            return
        with decoder.register_forward_hook(self.passed):
            yield

    def passed(self, *_: Any) -> None:
        """Count a pass through a network; a forward hook."""
        if self._is_sketching:
            return
        self._run.count(**self._made)
        self.advance()

    def advance(self) -> None:
        """Count an iteration."""
        self._step += 1
        self._run.advance(self._step, self._steps)
