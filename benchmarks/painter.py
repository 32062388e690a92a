"""What the peers serve: the library's pipeline, one call for those of a batch that ask for the same steps."""

import base64
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

CHECKPOINT_VARIABLE = "BENCH_CHECKPOINT"  # the folder, to a peer's process


@dataclass(frozen=True)
class Order:
    """A picture that is asked for; the fields are those of our own API."""

    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    size: str


class Painter:
    """The pipeline in memory, on one thread."""

    def __init__(self, folder: Path) -> None:
        """Load it."""
        import torch
        from diffusers import StableDiffusionPipeline

        torch.set_num_threads(1)
        pipeline: Any = StableDiffusionPipeline
        self._pipeline = pipeline.from_pretrained(folder, use_safetensors=True)
        self._pipeline.set_progress_bar_config(disable=True)

    def paint(self, orders: Sequence[Order]) -> list[str]:
        """Return a PNG in base64 for each order; the pipeline takes one number of steps a call."""
        groups: dict[tuple[int, float, str], list[int]] = defaultdict(list)
        for index, order in enumerate(orders):
            groups[order.num_inference_steps, order.guidance_scale, order.size].append(index)
        pictures = [""] * len(orders)
        for indices in groups.values():
            for index, picture in zip(indices, self.call([orders[index] for index in indices]), strict=True):
                pictures[index] = as_base64(picture)
        return pictures

    def call(self, orders: Sequence[Order]) -> list[Any]:
        """Run the pipeline once for orders that differ in prompt and seed alone."""
        import torch

        width, height = map(int, orders[0].size.split("x"))
        made = self._pipeline(
            [order.prompt for order in orders],
            width=width,
            height=height,
            num_inference_steps=orders[0].num_inference_steps,
            guidance_scale=orders[0].guidance_scale,
            generator=[torch.Generator().manual_seed(order.seed) for order in orders],
        )
        return list(made.images)


def as_base64(picture: Any) -> str:
    """Encode as our worker does."""
    file = BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
