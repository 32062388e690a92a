"""Bark by the sentence and its stages: sound leaves as soon as a sentence is said, and the voice carries over.

Requests take turns between stages, and stop at every token. They do not share forwards: two thirds of the time go into
the fine stage, which is bound by computation (measured: 1.08 times as fast in batches of four).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from transformers import BarkModel, BarkProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from services.audio.schema import SpeechRequest
from services.audio.sentences import split_sentences
from services.engine.checkpoints import Kind
from services.engine.generation import Run
from services.engine.outputs import Sound, finite
from services.engine.stepper import MAX_BATCH_SIZE, Result
from services.engine.weights import open_weights
from services.errors import GenerationFailed, InvalidRequest, ModelUnavailable
from services.registry import Model, Profile
from services.settings import Settings

BARK = Kind("Bark", {"bark"})
History = dict[str, torch.Tensor]


class Stage(Enum):
    """What is made of a sentence next."""

    SEMANTIC = auto()  # tokens of what is said
    COARSE = auto()  # tokens of how it sounds
    FINE = auto()  # the rest of them, and samples


@dataclass(eq=False)
class Speech:
    """A request on its way."""

    request: SpeechRequest
    run: Run
    sentences: Sequence[str]
    draws: Sequence[torch.Tensor]  # the state of the random generators, see `random_state`
    history: History | None  # the voice so far
    stage: Stage = Stage.SEMANTIC
    number: int = 0  # of the sentence
    made: dict[Stage, torch.Tensor] = field(default_factory=dict)  # of this sentence
    num_samples: int = 0

    def advance(self) -> None:
        """Tell of a token, or of a forward of the fine stage; raises when nobody waits any more."""
        self.run.advance(self.number, len(self.sentences))


class TokenWatch(StoppingCriteria):
    """Tells of every token of a stage; what that raises ends the stage."""

    def __init__(self, speech: Speech) -> None:
        """Follow `speech`."""
        self._speech = speech

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Never stop by itself."""
        self._speech.advance()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class AudioStepper:
    """One Bark model; loaded when it is made."""

    always_shares = False

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring processor, presets and weights into memory."""
        weights = open_weights(model, settings, BARK)
        self._processor: Any = BarkProcessor.from_pretrained(weights.folder)
        network: Any = BarkModel.from_pretrained(weights.folder, dtype=weights.dtype, **weights.arguments)
        self._network = network.to(weights.device).eval()
        stages = network.generation_config
        self._sample_rate = int(stages.sample_rate)
        self._semantic = BarkSemanticGenerationConfig(**stages.semantic_config)
        self._coarse = BarkCoarseGenerationConfig(**stages.coarse_acoustics_config)
        self._fine = BarkFineGenerationConfig(**stages.fine_acoustics_config)
        self.max_active = settings.max_batch_size or MAX_BATCH_SIZE
        self.voices = self._offered(model, settings.profile)

    def cost(self, request: SpeechRequest) -> int:
        """Estimate next to nothing: between two stages a request is its tokens, and one stage runs at a time."""
        return 1_000_000

    def admit(self, request: SpeechRequest, seed: int, run: Run) -> Speech:
        """Choose the voice and cut the text.

        Raises:
            InvalidRequest: the voice is none of the checkpoint's presets.
        """
        history = self._preset(request.voice)
        before = random_state(self._network.device)
        torch.manual_seed(seed)
        draws = random_state(self._network.device)
        set_random_state(self._network.device, before)
        run.count(input_characters=len(request.input))
        return Speech(request, run, split_sentences(request.input), draws, history)

    def key(self, state: Speech) -> None:
        """Alone."""

    @torch.inference_mode()
    def forward(self, states: Sequence[Speech]) -> list[tuple[torch.Tensor, Sequence[torch.Tensor]]]:
        """Make the sentence's next stage; with it goes where that leaves the random generators.

        Bark draws from the global ones: each request has its own state of them.
        """
        (state,) = states
        device = self._network.device
        before = random_state(device)
        set_random_state(device, state.draws)
        try:
            match state.stage:
                case Stage.SEMANTIC:
                    made = self._make_semantic(state)
                case Stage.COARSE:
                    made = self._make_coarse(state)
                case Stage.FINE:
                    made = self._make_fine(state)
            return [(made, random_state(device))]
        finally:
            set_random_state(device, before)

    @torch.inference_mode()
    def advance(self, state: Speech, row: tuple[torch.Tensor, Sequence[torch.Tensor]]) -> Result | None:
        """Take the stage in; the last one emits the sentence's `Sound`.

        Raises:
            GenerationFailed: the model said nothing, or its numbers overflowed.
        """
        made, state.draws = row
        state.made[state.stage] = made
        if state.stage is Stage.SEMANTIC:
            # Where the model keeps silent there is nothing to be heard, and the voice stays as it was.
            if not len(self._spoken(state)):
                return self._next_sentence(state)
            state.stage = Stage.COARSE
            return None
        if state.stage is Stage.COARSE:
            state.stage = Stage.FINE
            return None
        samples = self._network.codec_decode(made)[0]
        state.history = {
            "semantic_prompt": self._spoken(state),
            "coarse_prompt": made[0, :2],
            "fine_prompt": made[0],
        }
        state.run.emit(Sound(finite(samples.float().cpu().numpy()), self._sample_rate))
        state.num_samples += len(samples)
        state.run.count(output_samples=len(samples), audio_seconds=len(samples) / self._sample_rate)
        return self._next_sentence(state)

    def preview(self, state: Speech) -> None:
        """Show nothing: sound leaves as it is made."""

    def _next_sentence(self, state: Speech) -> Result | None:
        state.number += 1
        state.made.clear()
        state.advance()
        if state.number < len(state.sentences):
            state.stage = Stage.SEMANTIC
            return None
        if not state.num_samples:
            raise GenerationFailed("the model said nothing; try another text or seed")
        return Result()

    def _offered(self, model: Model, profile: Profile) -> Mapping[str, str]:
        """The checkpoint's presets by the names that requests have for them.

        Raises:
            ModelUnavailable: the registry names one that there is not.
        """
        presets: Sequence[str] = tuple(self._processor.available_voice_presets)
        named = model.voices_in(profile)
        missing = set(named.values()).difference(presets) if named is not None else ()
        if missing:
            absent, present = ", ".join(sorted(missing)), ", ".join(presets) or "none"
            raise ModelUnavailable(f"model '{model.id}' has no voice preset {absent}; its checkpoint has: {present}")
        return named if named is not None else {preset: preset for preset in presets}

    def _preset(self, voice: str | None) -> History | None:
        # An unknown name would be opened as a file by the library.
        if voice is None:
            return None
        if voice not in self.voices:
            raise InvalidRequest(f"there is no voice '{voice}'; choose one of: {', '.join(self.voices)}", param="voice")
        return dict(self._processor("a", voice_preset=self.voices[voice])["history_prompt"].to(self._network.device))

    def _spoken(self, state: Speech) -> torch.Tensor:
        semantic = state.made[Stage.SEMANTIC][0]
        return semantic[semantic != self._semantic.semantic_pad_token]  # which is also the end mark

    def _make_semantic(self, state: Speech) -> torch.Tensor:
        inputs = self._processor(state.sentences[state.number], truncation=True).to(self._network.device)
        tokens: torch.Tensor = self._network.semantic.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            history_prompt=state.history,
            semantic_generation_config=self._semantic,
            stopping_criteria=StoppingCriteriaList([TokenWatch(state)]),
        )
        return tokens

    def _make_coarse(self, state: Speech) -> torch.Tensor:
        tokens: torch.Tensor = self._network.coarse_acoustics.generate(
            state.made[Stage.SEMANTIC].clone(),
            **self._shared(state),
            stopping_criteria=StoppingCriteriaList([TokenWatch(state)]),
        )
        return tokens

    def _make_fine(self, state: Speech) -> torch.Tensor:
        network = self._network.fine_acoustics
        with network.layernorm_final.register_forward_hook(lambda *_: state.advance()):
            tokens: torch.Tensor = network.generate(
                state.made[Stage.COARSE], **self._shared(state), fine_generation_config=self._fine
            )
        return tokens

    def _shared(self, state: Speech) -> dict[str, Any]:
        return {
            "history_prompt": state.history,
            "semantic_generation_config": self._semantic,
            "coarse_generation_config": self._coarse,
            "codebook_size": self._network.generation_config.codebook_size,
        }


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the state of the CPU's random generator and, where models run on another device, of that one's."""
    others = [torch.get_device_module(device).get_rng_state(device)] if device.type != "cpu" else []
    return [torch.get_rng_state(), *others]


def set_random_state(device: torch.device, state: Sequence[torch.Tensor]) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(state[0])
    for other in state[1:]:
        torch.get_device_module(device).set_rng_state(other, device)
