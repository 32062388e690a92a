"""Stable Video Diffusion by the step: requests share forwards, and frames leave as they are decoded; knows no HTTP.

Built from the library's own parts, and equal to its own call at the same seed.
"""

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image, ImageOps

from services.engine.checkpoints import Kind
from services.engine.generation import Run
from services.engine.outputs import pixels
from services.engine.pipelines import PipelineCall, shrunk
from services.engine.placement import accelerate
from services.engine.stepper import MAX_BATCH_SIZE, Result
from services.engine.weights import load_pipeline
from services.errors import InvalidRequest
from services.registry import Model
from services.schema import parse_size
from services.settings import Settings
from services.video.schema import TextVideoJob, VideoJob

STABLE_VIDEO_DIFFUSION = Kind("Stable Video Diffusion", {"StableVideoDiffusionPipeline"})
WAN = Kind("Wan", {"WanPipeline"})
MAX_FILMS = 4  # in progress at once, whatever the operator allows for smaller things
NOISE = 0.02  # added to the picture; this and the guidance are the library's defaults
GUIDANCE = 1.0, 3.0  # of the first frame and the last
# Feature maps at full size that are alive at once, measured on a CPU at 256 and 512 pixels.
NUM_DENOISER_MAPS = 40
NUM_DECODER_MAPS = 8


class Phase(Enum):
    """What a film's next forward is for."""

    ENCODE = auto()
    DENOISE = auto()
    DECODE = auto()


@dataclass(frozen=True)
class Encoded:
    """What the networks make of a picture, in two rows each: nothing, and the picture."""

    context: torch.Tensor  # (2, 1, width), which the denoiser attends to
    source: torch.Tensor  # (2, channels, height, width), the picture's latents
    time_ids: torch.Tensor  # (2, 3): frame rate, motion, noise
    latents: torch.Tensor  # (1, frames, channels, height, width), to begin with


@dataclass(eq=False)
class Film:
    """A request on its way."""

    job: VideoJob
    picture: Image.Image  # of the film's size
    seed: int
    run: Run
    scheduler: Any  # its own copy
    shape: tuple[int, ...]  # of the latents: (1, frames, channels, height, width)
    guidance: torch.Tensor  # (frames, 1, 1, 1)
    phase: Phase = Phase.ENCODE
    step: int = 0
    num_decoded: int = 0  # frames
    num_iterations: int = 0
    encoded: Any = None  # `Encoded`, while it is needed
    latents: Any = None
    clean: Any = None  # where the last step saw them end

    @property
    def num_pieces(self) -> int:
        """Pieces to decode."""
        return -(-self.job.num_frames // self.job.decode_chunk_size)

    @property
    def piece(self) -> slice:
        """The frames to decode next."""
        return slice(self.num_decoded, min(self.num_decoded + self.job.decode_chunk_size, self.job.num_frames))

    def advance(self) -> None:
        """Tell of an iteration; raises when nobody waits any more."""
        self.num_iterations += 1
        self.run.advance(self.num_iterations, 1 + len(self.scheduler.timesteps) + self.num_pieces)


class FilmStepper:
    """One image-to-video model; loaded when it is made."""

    always_shares = False

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        self._pipeline = load_pipeline(model, settings, STABLE_VIDEO_DIFFUSION)
        self._device: torch.device = self._pipeline.device  # kept: the library walks all modules for it each time
        self._dtype: torch.dtype = self._pipeline.unet.dtype
        self.max_active = min(MAX_FILMS, settings.max_batch_size or MAX_BATCH_SIZE)
        self._unet = accelerate(self._pipeline.unet, settings)

    def cost(self, request: tuple[VideoJob, Image.Image]) -> int:
        """Estimate by the larger of the two: the denoiser's feature maps of all frames, the decoder's of a piece."""
        job, _ = request
        width, height = parse_size(job.size)
        unet, vae = self._pipeline.unet, self._pipeline.vae
        num_cells = width * height // self._pipeline.vae_scale_factor**2
        num_together = min(job.decode_chunk_size, job.num_frames)
        denoising: int = NUM_DENOISER_MAPS * 2 * job.num_frames * num_cells * unet.config.block_out_channels[0]
        decoding: int = NUM_DECODER_MAPS * num_together * width * height * vae.config.block_out_channels[1]
        return max(denoising, decoding) * self._dtype.itemsize

    def admit(self, request: tuple[VideoJob, Image.Image], seed: int, run: Run) -> Film:
        """Crop the picture, and give the request a scheduler of its own."""
        job, picture = request
        width, height = parse_size(job.size)
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        scheduler.set_timesteps(job.num_inference_steps, device=self._device)
        scheduler.set_begin_index(0)  # it would look for it, and read from the device
        scale = self._pipeline.vae_scale_factor
        channels = self._pipeline.unet.config.out_channels
        shape = 1, job.num_frames, channels, height // scale, width // scale
        ramp = torch.linspace(*GUIDANCE, job.num_frames)[:, None, None, None]
        guidance = ramp.to(self._device, self._dtype)
        return Film(job, ImageOps.fit(picture, (width, height)), seed, run, scheduler, shape, guidance)

    def key(self, state: Film) -> Hashable | None:
        """Name phase and shape; the encoding is a request's own, and all of one that must repeat byte by byte."""
        match state.phase:
            case _ if state.job.deterministic:
                return None
            case Phase.ENCODE:
                return None
            case Phase.DENOISE:
                return state.phase, state.shape
            case Phase.DECODE:
                return state.phase, state.shape[2:], state.piece.stop - state.piece.start

    @torch.inference_mode()
    def forward(self, states: Sequence[Film]) -> Sequence[Any]:
        """Run the phase's networks."""
        match states[0].phase:
            case Phase.ENCODE:
                return [self._encode(state) for state in states]
            case Phase.DENOISE:
                return self._denoise(states)
            case Phase.DECODE:
                latents = torch.cat([state.latents[0, state.piece] for state in states])
                return self._decoded(latents, len(latents) // len(states))

    @torch.inference_mode()
    def advance(self, state: Film, row: Any) -> Result | None:
        """Take a phase's row in; frames are emitted one by one, uint8 of shape (height, width, 3).

        Raises:
            GenerationFailed: the model's numbers overflowed.
        """
        width, height = parse_size(state.job.size)
        match state.phase:
            case Phase.ENCODE:
                state.encoded, state.latents = row, row.latents
                state.phase = Phase.DENOISE
            case Phase.DENOISE:
                self._step(state, row)
                state.run.count(pixel_steps=width * height)
                if state.step == len(state.scheduler.timesteps):
                    state.phase, state.encoded = Phase.DECODE, None
            case Phase.DECODE:
                for frame in self._frames(row):
                    state.run.emit(frame)
                state.run.count(frames=state.piece.stop - state.num_decoded, pixel_steps=width * height)
                state.num_decoded = state.piece.stop
        state.advance()
        return Result() if state.num_decoded == state.job.num_frames else None

    @torch.inference_mode()
    def preview(self, state: Film) -> NDArray[np.uint8] | None:
        """Decode a smaller version of where the middle frame is going: a cell there is eight pixels."""
        if state.clean is None:
            return None
        middle = state.clean[0, state.job.num_frames // 2]
        decoded = self._decoded(shrunk(middle)[None].to(self._pipeline.vae.dtype), 1)
        frame: NDArray[np.uint8] = self._frames(decoded[0])[0]
        return frame

    def _encode(self, film: Film) -> Encoded:
        """Do what the library does, in its order: the generator is drawn from in that order."""
        pipeline, job = self._pipeline, film.job
        width, height = film.picture.size
        generator = torch.Generator().manual_seed(film.seed)
        context = pipeline._encode_image(film.picture, self._device, 1, True)
        picture = pipeline.video_processor.preprocess(film.picture, height=height, width=width).to(self._device)
        picture = picture + NOISE * randn_tensor(picture.shape, generator, self._device, picture.dtype)
        with self._upcast():
            source = pipeline._encode_vae_image(picture, self._device, 1, True).to(context.dtype)
        time_ids = pipeline._get_add_time_ids(job.fps - 1, job.motion_bucket_id, NOISE, context.dtype, 1, 1, True)
        noise = randn_tensor(film.shape, generator, self._device, context.dtype)
        latents = noise * film.scheduler.init_noise_sigma
        return Encoded(context, source, time_ids.to(self._device), latents)

    @contextmanager
    def _upcast(self) -> Iterator[None]:
        """Encode in float32 where half precision would overflow."""
        vae = self._pipeline.vae
        if not (vae.dtype == torch.float16 and vae.config.force_upcast):
            yield
            return
        vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            vae.to(dtype=torch.float16)

    def _denoise(self, films: Sequence[Film]) -> Sequence[torch.Tensor]:
        inputs, times, contexts, time_ids = [], [], [], []
        for film in films:
            time = film.scheduler.timesteps[film.step]
            scaled = film.scheduler.scale_model_input(film.latents, time).repeat(2, 1, 1, 1, 1)
            source = film.encoded.source.unsqueeze(1).expand_as(scaled)
            inputs.append(torch.cat([scaled, source], dim=2))
            times += [time, time]
            contexts.append(film.encoded.context)
            time_ids.append(film.encoded.time_ids)
        predicted: torch.Tensor = self._unet(
            torch.cat(inputs),
            torch.stack(times),
            encoder_hidden_states=torch.cat(contexts),
            added_time_ids=torch.cat(time_ids),
            return_dict=False,
        )[0]
        return list(predicted.split(2))

    def _step(self, film: Film, predicted: torch.Tensor) -> None:
        plain, pictured = predicted.chunk(2)
        guided = plain + film.guidance * (pictured - plain)
        stepped = film.scheduler.step(guided, film.scheduler.timesteps[film.step], film.latents)
        film.latents, film.clean = stepped.prev_sample, stepped.pred_original_sample
        film.step += 1

    def _decoded(self, latents: torch.Tensor, num_frames: int) -> Sequence[torch.Tensor]:
        """Decode latents of shape (n, channels, height, width), `num_frames` of them at a time seeing each other."""
        vae = self._pipeline.vae
        decoded: torch.Tensor = vae.decode(1 / vae.config.scaling_factor * latents, num_frames=num_frames).sample
        return list(decoded.float().split(num_frames))

    def _frames(self, decoded: torch.Tensor) -> NDArray[np.uint8]:
        return pixels(self._pipeline.video_processor.postprocess(decoded, output_type="np"))


class TextFilmGenerator:
    """One text-to-video model of the Wan family; loaded when it is made."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        pipeline = load_pipeline(model, settings, WAN)
        pipeline.vae.float()  # as its authors run it: in half precision its colours shift
        self._pipeline = pipeline
        self._call = PipelineCall(
            pipeline, arguments_of, hand_on, pixels_of, pipeline.vae.decoder, self._num_latent_frames, self._preview
        )

    def generate(self, request: TextVideoJob, seed: int, run: Run) -> Result:
        """Emit the film's frames one by one, uint8 of shape (height, width, 3), once all are decoded.

        Raises:
            GenerationFailed: the model's numbers overflowed.
            InvalidRequest: the size cannot be cut into the model's patches; the library would round it.
        """
        _, *patch = self._pipeline.transformer.config.patch_size
        rows, columns = (cells * self._pipeline.vae_scale_factor_spatial for cells in patch)
        width, height = parse_size(request.size)
        if width % columns or height % rows:
            message = f"width must be divisible by {columns} and height by {rows} for this model"
            raise InvalidRequest(message, param="size")
        return self._call.generate(request, seed, run)

    def _num_latent_frames(self, job: TextVideoJob) -> int:
        """How often the decoder is called: once for the first frame, then for every few."""
        together: int = self._pipeline.vae_scale_factor_temporal
        return 1 + (job.num_frames - 1) // together

    def _preview(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """Decode a smaller version of what latents, (1, channels, frames, height, width), have in the middle."""
        vae = self._pipeline.vae
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        small = shrunk(latents[0, :, latents.shape[2] // 2].to(vae.dtype))[None, :, None]
        decoded = vae.decode(small * deviation.to(small) + mean.to(small), return_dict=False)[0]
        frame: NDArray[np.uint8] = pixels(
            self._pipeline.video_processor.postprocess_video(decoded, output_type="np")[0]
        )[0]
        return frame


def arguments_of(job: TextVideoJob) -> dict[str, Any]:
    """What the pipeline's call takes."""
    width, height = parse_size(job.size)
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "width": width,
        "height": height,
        "num_frames": job.num_frames,
        "num_inference_steps": job.num_inference_steps,
        "guidance_scale": job.guidance_scale,
        "output_type": "np",
    }


def pixels_of(job: TextVideoJob) -> dict[str, int]:
    """Count what a pass through a network works on."""
    width, height = parse_size(job.size)
    return {"pixel_steps": width * height}


def hand_on(job: TextVideoJob, made: Any, run: Run) -> None:
    """Emit the film's frames, and count them."""
    for frame in pixels(made.frames[0]):
        run.emit(frame)
        run.count(frames=1)
