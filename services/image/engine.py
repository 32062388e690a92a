"""Stable Diffusion by the library's own pipeline, stopped between steps when nobody waits; knows no HTTP."""

from typing import Any

import torch

from services.engine.generation import Run
from services.engine.outputs import pixels
from services.engine.stepper import Result
from services.engine.weights import load_pipeline
from services.errors import ContentRefused
from services.image.schema import ImageJob
from services.registry import Model
from services.schema import parse_size
from services.settings import Settings


class ImageGenerator:
    """One text-to-image model; loaded when it is made."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        self._pipeline = load_pipeline(model, settings)

    def generate(self, request: ImageJob, seed: int, run: Run) -> Result:
        """Emit one picture, uint8 of shape (height, width, 3).

        Raises:
            ContentRefused: the checkpoint's safety checker flagged it.
            GenerationFailed: the model's numbers overflowed.
        """
        steps = request.num_inference_steps
        width, height = parse_size(request.size)

        def report(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            run.advance(index + 1, steps)
            return tensors

        made = self._pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=report,
            output_type="np",
        )
        if made.nsfw_content_detected and any(made.nsfw_content_detected):
            raise ContentRefused("the model's safety checker refused the picture; change the prompt or the seed")
        run.emit(pixels(made.images[0]))
        return Result({"images": 1, "pixel_steps": width * height * steps})
