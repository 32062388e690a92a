"""Stable Video Diffusion: denoised as one, decoded and handed on a few frames at a time; knows no HTTP."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from services.engine.generation import Run
from services.engine.outputs import pixels
from services.engine.stepper import Result
from services.engine.weights import load_pipeline
from services.registry import Model
from services.schema import parse_size
from services.settings import Settings
from services.video.schema import VideoJob


class VideoGenerator:
    """One image-to-video model; loaded when it is made."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        self._pipeline = load_pipeline(model, settings)

    def generate(self, request: tuple[VideoJob, Image.Image], seed: int, run: Run) -> Result:
        """Emit the film's frames one by one, uint8 of shape (height, width, 3).

        Raises:
            GenerationFailed: the model's numbers overflowed.
        """
        job, picture = request
        width, height = parse_size(job.size)
        pieces = -(-job.num_frames // job.decode_chunk_size)
        iterations = job.num_inference_steps + pieces

        def report(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            run.advance(index + 1, iterations)
            return tensors

        latents = self._pipeline(
            ImageOps.fit(picture, (width, height)),
            width=width,
            height=height,
            num_frames=job.num_frames,
            fps=job.fps,
            motion_bucket_id=job.motion_bucket_id,
            num_inference_steps=job.num_inference_steps,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=report,
            output_type="latent",
        ).frames
        for piece, frames in enumerate(self._decode(latents, job.decode_chunk_size), start=1):
            for frame in frames:
                run.emit(frame)
            run.advance(job.num_inference_steps + piece, iterations)
        return Result({"frames": job.num_frames, "pixel_steps": width * height * iterations})

    def _decode(self, latents: torch.Tensor, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield frames of shape (n, height, width, 3), `size` at a time: the temporal decoder sees no more at once."""
        pipeline = self._pipeline
        latents = latents.to(pipeline.vae.dtype)
        for piece in latents.split(size, dim=1):
            with torch.inference_mode():
                frames = pipeline.decode_latents(piece, piece.shape[1], piece.shape[1])
            yield pixels(pipeline.video_processor.postprocess_video(frames, output_type="np")[0])
