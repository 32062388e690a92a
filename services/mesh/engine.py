"""Shap-E: a text or a picture denoised to a latent, the latent sampled on a grid as a mesh; knows no HTTP."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from services.engine.checkpoints import Kind
from services.engine.generation import Run
from services.engine.outputs import Mesh, finite, overflowed
from services.engine.placement import accelerate
from services.engine.stepper import MAX_BATCH_SIZE, Result
from services.engine.weights import load_pipeline
from services.errors import GenerationFailed, InvalidRequest
from services.mesh.schema import MeshJob
from services.mesh.surface import find_surface
from services.registry import Modality, Model
from services.settings import Settings

SHAP_E: Mapping[Modality, Kind] = MappingProxyType(
    {
        "text": Kind("Shap-E for texts", {"ShapEPipeline"}),
        "image": Kind("Shap-E for pictures", {"ShapEImg2ImgPipeline"}),
    }
)
BYTES_PER_CELL = 20  # of the grid, while its surface is sought
BYTES_PER_SQUARE = 8000  # of a side of it: 900 a vertex; smooth shapes have 2 to 3 of them there


class Phase(StrEnum):
    """What a request's next forward is."""

    ENCODE = "encode"
    DENOISE = "denoise"
    PROJECT = "project"
    GRID = "grid"
    SURFACE = "surface"
    COLOUR = "colour"


@dataclass(eq=False)
class Shape:
    """A request in progress; what a phase has not made yet is not set."""

    job: MeshJob
    picture: Image.Image | None
    run: Run
    scheduler: Any
    latents: torch.Tensor  # (1, embeddings, width)
    steps: int
    step: int = 0
    phase: Phase = Phase.ENCODE
    num_sampled: int = 0  # points of the grid, then vertices
    condition: torch.Tensor = field(
        init=False, repr=False
    )  # (2, ...) with guidance, nothing and the source; else (1, ...)
    layers: dict[str, torch.Tensor] = field(init=False, repr=False)  # of the network that says what is at a point
    distances: torch.Tensor = field(init=False, repr=False)  # (grid_size ** 3,), signed, to the surface
    vertices: torch.Tensor = field(init=False, repr=False)  # (n, 3)
    faces: torch.Tensor = field(init=False, repr=False)  # (m, 3)
    colours: torch.Tensor = field(init=False, repr=False)  # (n, 3)

    @property
    def timestep(self) -> torch.Tensor:
        """Where the denoising is; the first step was the encoding."""
        timestep: torch.Tensor = self.scheduler.timesteps[self.step - 1]
        return timestep

    @property
    def is_through(self) -> bool:
        """Whether the last vertex has its colour."""
        return self.phase is Phase.COLOUR and self.num_sampled == len(self.vertices)


class MeshStepper:
    """One Shap-E model, for texts or for pictures; loaded when it is made.

    Encoding and denoising are shared. Everyone's latent is then decoded by itself, piece by piece.
    """

    piece = 32768  # points that are sampled at once: a turn among others, so neither long nor one of very many

    always_shares = False

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        self.max_active = settings.max_batch_size or MAX_BATCH_SIZE
        self._name = model.id
        self._takes_pictures = "image" in model.input_modalities
        self._pipeline = load_pipeline(model, settings, SHAP_E["image" if self._takes_pictures else "text"])
        self._prior = accelerate(self._pipeline.prior, settings)
        self._device: torch.device = self._prior.device  # kept: the library walks all modules for it each time
        self._dtype: torch.dtype = self._prior.dtype
        self._renderer = self._pipeline.shap_e_renderer

    def cost(self, request: tuple[MeshJob, Image.Image | None]) -> int:
        """Estimate the bytes that finding the surface takes, as measured; the rest is little beside."""
        job, _ = request
        return BYTES_PER_CELL * job.grid_size**3 + BYTES_PER_SQUARE * job.grid_size**2

    def admit(self, request: tuple[MeshJob, Image.Image | None], seed: int, run: Run) -> Shape:
        """Draw the noise and lay out the steps.

        Raises:
            InvalidRequest: a text for the picture model, or the reverse.
        """
        job, picture = request
        if self._takes_pictures != (picture is not None):
            wanted = "image" if self._takes_pictures else "prompt"
            raise InvalidRequest(f"model '{self._name}' needs '{wanted}'", param=wanted)
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        scheduler.set_timesteps(job.num_inference_steps)
        scheduler.set_begin_index(0)  # it would look for it, and read from the device
        shape = 1, self._prior.config.num_embeddings, self._prior.config.embedding_dim
        generator = torch.Generator().manual_seed(seed)
        latents = self._pipeline.prepare_latents(shape, self._dtype, self._device, generator, None, scheduler)
        num_others = 4  # encoding, projecting, the surface, the colours
        steps = len(scheduler.timesteps) + -(-(job.grid_size**3) // self.piece) + num_others
        return Shape(job, picture, run, scheduler, latents, steps)

    def key(self, state: Shape) -> Phase | None:
        """Let all encode together, and all denoise together: a timestep and a guidance are a row's own.

        What must repeat byte by byte shares nothing.
        """
        if state.job.deterministic:
            return None
        return state.phase if state.phase in (Phase.ENCODE, Phase.DENOISE) else None

    @torch.inference_mode()
    def forward(self, states: Sequence[Shape]) -> Sequence[Any]:
        """Run the phase of the first, which is that of all."""
        first = states[0]
        match first.phase:
            case Phase.ENCODE:
                return self._encode(states)
            case Phase.DENOISE:
                return self._denoise(states)
            case Phase.PROJECT:
                return [self._renderer.params_proj(first.latents)]
            case Phase.GRID:
                return [self._sample(first, self._grid_points(first)).signed_distance]
            case Phase.SURFACE:
                return [self._find_surface(first)]
            case Phase.COLOUR:
                piece = first.vertices[first.num_sampled : first.num_sampled + self.piece]
                return [to_linear(self._sample(first, piece).channels)]

    @torch.inference_mode()
    def advance(self, state: Shape, row: Any) -> Result | None:
        """Take the row in; emit one `Mesh` after the last.

        Raises:
            GenerationFailed: the model made an empty shape, or its numbers overflowed.
            Cancelled: the caller left.
            DeadlineExceeded: the caller's deadline has passed.
        """
        self._take(state, row)
        # How many vertices there will be is not known before: all pieces of their colours count as one step.
        state.step = state.steps if state.is_through else min(state.step + 1, state.steps - 1)
        state.run.advance(state.step, state.steps)
        if not state.is_through:
            return None
        mesh = Mesh(
            finite(state.vertices.float().cpu().numpy()),
            state.faces.cpu().numpy(),
            finite(state.colours.clamp(0, 1).cpu().numpy()),
        )
        state.run.emit(mesh)
        state.run.count(meshes=1, faces=len(mesh.faces))
        return Result()

    def preview(self, state: Shape) -> None:
        """Show nothing: a rendering takes seconds."""

    def _encode(self, states: Sequence[Shape]) -> Sequence[torch.Tensor]:
        pipeline = self._pipeline
        if self._takes_pictures:
            pictures = [pipeline.image_processor(state.picture, return_tensors="pt").pixel_values for state in states]
            encoded = pipeline._encode_image(torch.cat(pictures), self._device, 1, False)
        else:
            encoded = pipeline._encode_prompt([state.job.prompt for state in states], self._device, 1, False)
        rows: Sequence[torch.Tensor] = encoded.split(1)
        return rows

    def _denoise(self, states: Sequence[Shape]) -> Sequence[torch.Tensor]:
        sizes = [len(state.condition) for state in states]
        samples = [state.scheduler.scale_model_input(state.latents, state.timestep) for state in states]
        timesteps = torch.stack([state.timestep for state in states]).repeat_interleave(torch.tensor(sizes))
        predicted = self._prior(
            torch.cat([sample.expand(size, -1, -1) for sample, size in zip(samples, sizes, strict=True)]),
            timestep=timesteps.to(self._device, non_blocking=True),
            proj_embedding=torch.cat([state.condition for state in states]),
        ).predicted_image_embedding
        rows: Sequence[torch.Tensor] = predicted.split(sizes)
        return rows

    def _grid_points(self, state: Shape) -> torch.Tensor:
        """Return the next piece of the grid's points, (n, 3), z running fastest.

        Source: `volume_query_points` of the renderer, which makes all of them.
        """
        size, volume = state.job.grid_size, self._renderer.volume
        end = min(state.num_sampled + self.piece, size**3)
        index = torch.arange(state.num_sampled, end, device=self._device)
        cells = torch.stack([index // size**2, index // size % size, index % size], dim=1)
        points: torch.Tensor = cells.float() / (size - 1) * (volume.bbox_max - volume.bbox_min) + volume.bbox_min
        return points

    def _sample(self, state: Shape, points: torch.Tensor) -> Any:
        """Ask the request's own network, which has the layers that its latent was projected to."""
        position = points[None].to(self._device, self._dtype)
        inputs = {"position": position, "direction": None, "ts": None, "nerf_level": "fine", "rendering_mode": "stf"}
        return torch.func.functional_call(self._renderer.mlp, state.layers, kwargs=inputs)

    def _find_surface(self, state: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        volume = self._renderer.volume
        cube = state.distances.reshape((state.job.grid_size,) * 3)
        closed = torch.nn.functional.pad(cube, (1,) * 6, value=-1)  # all around it is outside
        tables = self._renderer.mesh_decoder
        size = volume.bbox_max - volume.bbox_min
        return find_surface(closed, tables.cases, tables.masks, volume.bbox_min, size)

    def _take(self, state: Shape, row: Any) -> None:
        match state.phase:
            case Phase.ENCODE:
                is_guided = state.job.guidance_scale > 1
                state.condition = torch.cat([torch.zeros_like(row), row]) if is_guided else row
                state.phase = Phase.DENOISE
            case Phase.DENOISE:
                self._take_prediction(state, row)
            case Phase.PROJECT:
                if not state.latents.isfinite().all():
                    raise overflowed()
                state.layers = {name.removeprefix("nerstf."): weights[0] for name, weights in row.items()}
                state.distances = torch.empty(state.job.grid_size**3, device=state.latents.device)
                state.phase = Phase.GRID
            case Phase.GRID:
                state.num_sampled = fill(state.distances, state.num_sampled, row[0, :, 0])
                if state.num_sampled == len(state.distances):
                    state.phase = Phase.SURFACE
            case Phase.SURFACE:
                self._take_surface(state, row)
            case Phase.COLOUR:
                state.num_sampled = fill(state.colours, state.num_sampled, row[0])

    def _take_prediction(self, state: Shape, row: torch.Tensor) -> None:
        predicted = row[..., : state.latents.shape[2]]  # the rest is the variance
        if len(row) == 2:
            free, bound = predicted.chunk(2)
            predicted = free + state.job.guidance_scale * (bound - free)
        state.latents = state.scheduler.step(predicted, state.timestep, state.latents).prev_sample
        if state.step == len(state.scheduler.timesteps):
            state.phase = Phase.PROJECT

    def _take_surface(self, state: Shape, found: tuple[torch.Tensor, torch.Tensor]) -> None:
        vertices, faces = found
        if not state.distances.isfinite().all():
            raise overflowed()
        if len(vertices) == 0:
            raise GenerationFailed("the model made an empty shape; try another prompt or seed")
        del state.distances
        state.vertices, state.faces = vertices, faces
        state.colours = torch.empty_like(vertices)
        state.num_sampled = 0
        state.phase = Phase.COLOUR


def fill(whole: torch.Tensor, start: int, piece: torch.Tensor) -> int:
    """Put `piece` into `whole` from `start` on, and return where it ends."""
    end = start + len(piece)
    whole[start:end] = piece
    return end


def to_linear(colours: torch.Tensor) -> torch.Tensor:
    """Take the curve of sRGB off `colours` in [0, 1], as the renderer does.

    Source: IEC 61966-2-1.
    """
    return torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
