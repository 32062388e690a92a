"""Shap-E: a text or a picture denoised to a latent, the latent sampled on a grid as a mesh; knows no HTTP."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from PIL import Image

from services.engine.engine import Result
from services.engine.generation import Run
from services.engine.outputs import Mesh
from services.engine.weights import load_pipeline
from services.errors import GenerationFailed, InvalidRequest
from services.mesh.schema import MeshJob
from services.registry import Model
from services.settings import Settings


class MeshGenerator:
    """One Shap-E model, for texts or for pictures; loaded when it is made."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        self._name = model.id
        self._pipeline = load_pipeline(model, settings)

    def generate(self, request: tuple[MeshJob, Image.Image | None], seed: int, run: Run) -> Result:
        """Emit one `Mesh`.

        Raises:
            InvalidRequest: a text for the picture model, or the reverse.
            GenerationFailed: the model made an empty shape.
        """
        job, picture = request
        takes_pictures = hasattr(self._pipeline, "image_encoder")
        if takes_pictures != (picture is not None):
            wanted = "image" if takes_pictures else "prompt"
            raise InvalidRequest(f"model '{self._name}' needs '{wanted}'", param=wanted)
        # The pipelines have no callback: the bar around their loop is the only place between two steps.
        self._pipeline.progress_bar = lambda timesteps: watched(timesteps, run)
        latents = self._pipeline(
            picture if takes_pictures else job.prompt,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        mesh = self._decode(latents, job.grid_size)
        run.emit(mesh)
        run.advance(job.num_inference_steps, job.num_inference_steps)
        return Result({"meshes": 1, "faces": len(mesh.faces)})

    def _decode(self, latents: torch.Tensor, grid_size: int) -> Mesh:
        renderer = self._pipeline.shap_e_renderer
        with torch.inference_mode(), torch.random.fork_rng():
            try:
                made = renderer.decode_to_mesh(latents[:1], latents.device, grid_size=grid_size)
            except RuntimeError as error:
                if "non-empty list" not in str(error):
                    raise
                raise GenerationFailed("the model made an empty shape; try another prompt or seed") from error
        colours = torch.stack([made.vertex_channels[name] for name in "RGB"], dim=1)
        return Mesh(
            made.verts.float().cpu().numpy(),
            made.faces.cpu().numpy(),
            colours.float().clamp(0, 1).cpu().numpy(),
        )


def watched(timesteps: Iterable[Any], run: Run) -> Iterator[Any]:
    """Iterate over `timesteps`, telling `run` after each."""
    steps = list(timesteps)
    for step, timestep in enumerate(steps, start=1):
        yield timestep
        run.advance(step, len(steps))
