"""Shap-E: a text or a picture denoised to a latent, the latent sampled on a grid as a mesh; knows no HTTP."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from PIL import Image

from services.engine.generation import Run
from services.engine.outputs import Mesh, finite, overflowed
from services.engine.stepper import Result
from services.engine.weights import load_pipeline
from services.errors import GenerationFailed, InvalidRequest
from services.mesh.schema import MeshJob
from services.registry import Model
from services.settings import Settings

PIECE = 4096  # points of the grid that are sampled at once


class Watch:
    """Tells the run about what the library has no callback for: denoising calls, then pieces of the grid."""

    def __init__(self, run: Run, pieces: int) -> None:
        """Expect `pieces` pieces after the denoising; the vertices' colours count as part of the last."""
        self._run = run
        self._pieces = pieces
        self._step = self._steps = 0

    def denoising(self, timesteps: Iterable[Any]) -> Iterator[Any]:
        """Iterate over `timesteps`, in place of the pipeline's progress bar: its only call between two of them."""
        calls = list(timesteps)
        self._steps = len(calls) + self._pieces
        for timestep in calls:
            yield timestep
            self.advance()

    def advance(self, *_: Any) -> None:
        """Count an iteration; a forward hook."""
        self._step = min(self._step + 1, self._steps)
        self._run.advance(self._step, self._steps)


class MeshGenerator:
    """One Shap-E model, for texts or for pictures; loaded when it is made."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        self._name = model.id
        self._pipeline = load_pipeline(model, settings)
        self._takes_pictures = hasattr(self._pipeline, "image_encoder")

    def generate(self, request: tuple[MeshJob, Image.Image | None], seed: int, run: Run) -> Result:
        """Emit one `Mesh`.

        Raises:
            InvalidRequest: a text for the picture model, or the reverse.
            GenerationFailed: the model made an empty shape, or its numbers overflowed.
        """
        job, picture = request
        if self._takes_pictures != (picture is not None):
            wanted = "image" if self._takes_pictures else "prompt"
            raise InvalidRequest(f"model '{self._name}' needs '{wanted}'", param=wanted)
        watch = Watch(run, -(-(job.grid_size**3) // PIECE))
        latents = self._denoise(job, picture, seed, watch)
        if not latents.isfinite().all():
            raise overflowed()
        mesh = self._decode(latents, job.grid_size, watch)
        run.emit(mesh)
        return Result({"meshes": 1, "faces": len(mesh.faces)})

    def _denoise(self, job: MeshJob, picture: Image.Image | None, seed: int, watch: Watch) -> torch.Tensor:
        pipeline = self._pipeline
        pipeline.progress_bar = watch.denoising
        try:
            latents: torch.Tensor = pipeline(
                picture if self._takes_pictures else job.prompt,
                num_inference_steps=job.num_inference_steps,
                guidance_scale=job.guidance_scale,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
            ).images
        finally:
            del pipeline.progress_bar  # which holds the request
        return latents

    def _decode(self, latents: torch.Tensor, grid_size: int, watch: Watch) -> Mesh:
        renderer = self._pipeline.shap_e_renderer
        with torch.inference_mode(), renderer.mlp.register_forward_hook(watch.advance):
            try:
                made = renderer.decode_to_mesh(latents[:1], latents.device, grid_size, query_batch_size=PIECE)
            except ValueError as error:  # torch.cat of no vertices
                if "non-empty list" not in str(error):
                    raise
                raise GenerationFailed("the model made an empty shape; try another prompt or seed") from error
        colours = torch.stack([made.vertex_channels[name] for name in "RGB"], dim=1)
        return Mesh(
            finite(made.verts.float().cpu().numpy()),
            made.faces.cpu().numpy(),
            finite(colours.float().clamp(0, 1).cpu().numpy()),
        )
