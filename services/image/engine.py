"""Stable Diffusion by the step: every request at its own, all in one forward; knows no HTTP.

Built from the library's own parts, and equal to its own call at the same seed: text to image, image to image and
inpainting.
"""

import copy
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray

from services.engine.adapters import open_adapter
from services.engine.checkpoints import Kind
from services.engine.generation import Run
from services.engine.lora import Adapters
from services.engine.outputs import pixels
from services.engine.pipelines import shrunk
from services.engine.placement import accelerate
from services.engine.stepper import MAX_BATCH_SIZE, Result
from services.engine.weights import load_pipeline
from services.errors import ContentRefused, InvalidRequest
from services.image.edit import Edit
from services.image.schema import ImageJob
from services.registry import Model
from services.schema import parse_size
from services.settings import Settings

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {  # the class, and what it is told besides the checkpoint's numbers
    "ddim": (DDIMScheduler, {"clip_sample": False}),  # its default is for pixels: latents go beyond 1
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),  # as Stable Diffusion has it; else it takes four steps or more
}
STABLE_DIFFUSION = Kind(
    "Stable Diffusion",
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
    },
)
NUM_MAPS = 6  # feature maps of the decoder's widest full-size layer that are alive at once


@cache
def takes_generator(step: Callable[..., Any]) -> bool:
    """Whether this scheduler's step draws noise."""
    return "generator" in inspect.signature(step).parameters


class Phase(Enum):
    """What a drawing's next forward is for."""

    ENCODE = auto()  # the prompts
    PREPARE = auto()  # the picture to start from
    DENOISE = auto()
    DECODE = auto()


@dataclass(eq=False)
class Drawing:
    """A request on its way: what it starts with, and how far it is."""

    request: Edit
    run: Run
    scheduler: Any  # its own copy
    timesteps: torch.Tensor  # (n,), on the CPU: where schedulers look their numbers up
    generator: torch.Generator
    is_guided: bool
    phase: Phase = Phase.ENCODE
    step: int = 0
    iteration: int = 0
    # Tensors, from the phase on that makes them:
    context: Any = None  # (rows, tokens, width), the negative prompt's first
    latents: Any = None  # (1, channels, height, width), as the next four
    clean: Any = None  # where the last step saw them end, if its scheduler says so
    source: Any = None  # the picture's, for networks that know no masks
    masked: Any = None  # of what remains of it, for those that do
    noise: Any = None
    mask: Any = None  # (1, 1, height, width), 1 where to paint

    @property
    def job(self) -> ImageJob:
        """What is to be drawn."""
        return self.request.job

    @property
    def num_rows(self) -> int:
        """Rows of a denoising forward."""
        return 2 if self.is_guided else 1

    @property
    def num_iterations(self) -> int:
        """Encoding, preparing, steps, decoding."""
        return 2 + (self.request.picture is not None) + len(self.timesteps)

    def advance(self) -> None:
        """Tell of an iteration; raises when nobody waits any more."""
        self.iteration += 1
        self.run.advance(self.iteration, self.num_iterations)


class ImageStepper:
    """One Stable Diffusion model; loaded when it is made."""

    always_shares = False

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring the pipeline into memory."""
        pipeline = load_pipeline(model, settings, STABLE_DIFFUSION)
        self._pipeline = pipeline
        self._device: torch.device = pipeline.device  # kept: the library walks all modules for it each time
        self._dtype: torch.dtype = pipeline.unet.dtype
        self._scheduler = pipeline.scheduler  # which the pipelines' own is set to a request's for some of their methods
        self.max_active = settings.max_batch_size or MAX_BATCH_SIZE
        networks = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
        self._adapters = Adapters(networks, self._device, self._dtype)
        for adapter in model.adapters:
            self._adapters.load(adapter.name, open_adapter(adapter, model, settings), adapter.scale)
        self._unet = accelerate(pipeline.unet, settings)
        self._paints_only = pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels
        parts = {**pipeline.components, "requires_safety_checker": bool(pipeline.config.requires_safety_checker)}
        self._redrawing: Any = StableDiffusionImg2ImgPipeline(**parts)
        self._inpainting: Any = StableDiffusionInpaintPipeline(**parts)

    def cost(self, request: Edit) -> int:
        """Estimate by the decoder's largest feature maps, of which 4.7 were measured at 512 and 1024 pixels."""
        width, height = parse_size(request.job.size)
        config = self._pipeline.vae.config
        channels = config.block_out_channels[min(1, len(config.block_out_channels) - 1)]
        return NUM_MAPS * width * height * int(channels) * self._dtype.itemsize

    def admit(self, request: Edit, seed: int, run: Run) -> Drawing:
        """Give the request a scheduler and a generator of its own.

        Raises:
            InvalidRequest: a text alone for a model that only fills in, or too few steps.
        """
        if self._paints_only and request.mask is None:
            raise InvalidRequest("this model fills masked parts of a picture; send an image and a mask", param="mask")
        job = request.job
        if job.scheduler is None:
            scheduler = copy.deepcopy(self._scheduler)
        else:
            made, settings = SCHEDULERS[job.scheduler]
            scheduler = made.from_config(self._scheduler.config, **settings)
        try:
            scheduler.set_timesteps(job.num_inference_steps)
        except ValueError as error:
            raise InvalidRequest("the scheduler cannot do it in so few steps", param="num_inference_steps") from error
        timesteps = scheduler.timesteps
        if request.picture is not None:
            self._redrawing.scheduler = scheduler
            timesteps, _ = self._redrawing.get_timesteps(job.num_inference_steps, request.strength, "cpu")
            if not len(timesteps):
                raise InvalidRequest("strength leaves no step to be made; raise it, or the steps", param="strength")
        is_guided = job.guidance_scale > 1 and self._pipeline.unet.config.time_cond_proj_dim is None
        return Drawing(request, run, scheduler, timesteps, torch.Generator().manual_seed(seed), is_guided)

    def key(self, state: Drawing) -> Hashable | None:
        """Name phase and shapes; the preparing is a request's own, and all of one that must repeat byte by byte."""
        if state.job.deterministic:
            return None
        match state.phase:
            case Phase.PREPARE:
                return None
            case Phase.ENCODE:
                return state.phase, state.is_guided
            case _:
                return state.phase, state.job.size

    @torch.inference_mode()
    def forward(self, states: Sequence[Drawing]) -> Sequence[Any]:
        """Run the phase's network."""
        match states[0].phase:
            case Phase.ENCODE:
                return self._encode(states)
            case Phase.PREPARE:
                return [None]
            case Phase.DENOISE:
                return self._denoise(states)
            case Phase.DECODE:
                return self._decode(states)

    @torch.inference_mode()
    def advance(self, state: Drawing, row: Any) -> Result | None:
        """Take a phase's row in; the last one emits the picture, uint8 of shape (height, width, 3).

        Raises:
            ContentRefused: the checkpoint's safety checker flagged it.
            GenerationFailed: the model's numbers overflowed.
        """
        match state.phase:
            case Phase.ENCODE:
                state.context = row
                state.phase = Phase.DENOISE if state.request.picture is None else Phase.PREPARE
                if state.request.picture is None:
                    self._start(state)
            case Phase.PREPARE:
                self._start_from_picture(state)
                state.phase = Phase.DENOISE
            case Phase.DENOISE:
                self._step(state, row)
                width, height = parse_size(state.job.size)
                state.run.count(pixel_steps=width * height)
                if state.step == len(state.timesteps):
                    state.phase = Phase.DECODE
            case Phase.DECODE:
                state.run.emit(self._finished(row))
                state.run.count(images=1)
                state.advance()
                return Result()
        state.advance()
        return None

    @torch.inference_mode()
    def preview(self, state: Drawing) -> NDArray[np.uint8] | None:
        """Decode a smaller version of where the latents are going: a cell there is eight pixels."""
        latents = state.latents if state.clean is None else state.clean
        if latents is None or state.phase is not Phase.DENOISE or not state.step:
            return None
        return self._picture(self._decoded(shrunk(latents)))

    def _encode(self, states: Sequence[Drawing]) -> list[torch.Tensor]:
        prompts = [state.job.prompt for state in states]
        negative_prompts = [state.job.negative_prompt or "" for state in states]
        is_guided = states[0].is_guided
        with self._adapters.added([state.job.adapter for state in states]):
            positive, negative = self._pipeline.encode_prompt(
                prompts, self._device, 1, is_guided, negative_prompts if is_guided else None
            )
        if not is_guided:
            return list(positive.split(1))
        return [torch.cat(pair) for pair in zip(negative.split(1), positive.split(1), strict=True)]

    def _start(self, state: Drawing) -> None:
        width, height = parse_size(state.job.size)
        channels, scale = self._pipeline.unet.config.in_channels, self._pipeline.vae_scale_factor
        noise = randn_tensor((1, channels, height // scale, width // scale), state.generator, self._device, self._dtype)
        state.latents = noise * state.scheduler.init_noise_sigma

    def _start_from_picture(self, state: Drawing) -> None:
        """Do what the library's two pipelines do, in their order: the generator is drawn from in that order."""
        width, height = parse_size(state.job.size)
        first = state.timesteps[:1]
        pipeline = self._redrawing if state.request.mask is None else self._inpainting
        pipeline.scheduler = state.scheduler
        image = pipeline.image_processor.preprocess(state.request.picture, height=height, width=width)
        if state.request.mask is None:
            state.latents = pipeline.prepare_latents(image, first, 1, 1, self._dtype, self._device, state.generator)
            return
        drawn = pipeline.prepare_latents(
            1,
            pipeline.vae.config.latent_channels,
            height,
            width,
            self._dtype,
            self._device,
            state.generator,
            image=image,
            timestep=first,
            is_strength_max=state.request.strength == 1.0,
            return_noise=True,
            return_image_latents=not self._paints_only,
        )
        state.latents, state.noise = drawn[:2]
        mask = pipeline.mask_processor.preprocess(state.request.mask, height=height, width=width)
        state.mask, state.masked = pipeline.prepare_mask_latents(
            mask,
            image * (mask < 0.5),
            1,
            height,
            width,
            self._dtype,
            self._device,
            state.generator,
            do_classifier_free_guidance=False,
        )
        state.source = None if self._paints_only else drawn[2]

    def _denoise(self, states: Sequence[Drawing]) -> Sequence[torch.Tensor]:
        inputs, times, contexts, guidances, adapters = [], [], [], [], []
        for state in states:
            time = state.timesteps[state.step]
            scaled = state.scheduler.scale_model_input(state.latents, time)
            if self._paints_only:
                scaled = torch.cat([scaled, state.mask, state.masked], dim=1)
            inputs += [scaled] * state.num_rows
            times += [time] * state.num_rows
            guidances += [state.job.guidance_scale - 1] * state.num_rows
            contexts.append(state.context)
            adapters += [state.job.adapter] * state.num_rows
        with self._adapters.added(adapters):
            predicted: torch.Tensor = self._unet(
                torch.cat(inputs),
                torch.stack(times).to(self._device, torch.float32, non_blocking=True),
                encoder_hidden_states=torch.cat(contexts),
                timestep_cond=self._guidance_embedding(guidances),
                return_dict=False,
            )[0]
        return list(predicted.split([state.num_rows for state in states]))

    def _guidance_embedding(self, guidances: Sequence[float]) -> torch.Tensor | None:
        """Embed the guidance for distilled networks, which take it as an input."""
        width = self._pipeline.unet.config.time_cond_proj_dim
        if width is None:
            return None
        embedded: torch.Tensor = self._pipeline.get_guidance_scale_embedding(
            torch.tensor(guidances), embedding_dim=width
        )
        return embedded.to(device=self._device, dtype=self._dtype)

    def _step(self, state: Drawing, predicted: torch.Tensor) -> None:
        if state.is_guided:
            unprompted, prompted = predicted.chunk(2)
            predicted = unprompted + state.job.guidance_scale * (prompted - unprompted)
        extra = {"generator": state.generator} if takes_generator(type(state.scheduler).step) else {}
        stepped = state.scheduler.step(predicted, state.timesteps[state.step], state.latents, **extra)
        state.latents = stepped.prev_sample
        state.clean = getattr(stepped, "pred_original_sample", None)
        state.step += 1
        if state.source is not None:
            state.latents = self._with_source(state)

    def _with_source(self, state: Drawing) -> torch.Tensor:
        """Put the picture back where nothing is to be painted, as noisy as the rest is by now."""
        source = state.source
        if state.step < len(state.timesteps):
            time = state.timesteps[state.step : state.step + 1]
            source = state.scheduler.add_noise(source, state.noise, time)
        kept: torch.Tensor = (1 - state.mask) * source + state.mask * state.latents
        return kept

    def _decode(self, states: Sequence[Drawing]) -> Sequence[torch.Tensor]:
        return list(self._decoded(torch.cat([state.latents for state in states])).split(1))

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self._pipeline.vae
        decoded: torch.Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return decoded

    def _finished(self, decoded: torch.Tensor) -> NDArray[np.uint8]:
        checked, flags = self._pipeline.run_safety_checker(decoded, self._device, self._dtype)
        if flags and any(flags):
            raise ContentRefused("the model's safety checker refused the picture; change the prompt or the seed")
        return self._picture(checked)

    def _picture(self, decoded: torch.Tensor) -> NDArray[np.uint8]:
        return pixels(self._pipeline.image_processor.postprocess(decoded, output_type="np")[0])
