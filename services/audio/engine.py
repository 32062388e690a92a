"""Bark, sentence by sentence: sound leaves as soon as a sentence is said, and the voice carries over; knows no HTTP."""

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
from services.engine.generation import Run
from services.engine.outputs import Sound, finite
from services.engine.stepper import Result
from services.engine.weights import open_weights
from services.errors import GenerationFailed, InvalidRequest
from services.registry import Model
from services.settings import Settings

History = dict[str, torch.Tensor]


class TokenWatch(StoppingCriteria):
    """Tells the run about every token of a stage; the run may raise, which ends the stage."""

    def __init__(self, run: Run, step: int, steps: int) -> None:
        """Report tokens of sentence `step` of `steps`."""
        self._run = run
        self._step = step
        self._steps = steps

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Never stop by itself."""
        self._run.advance(self._step, self._steps)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class AudioGenerator:
    """One Bark model; loaded when it is made."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring processor, presets and weights into memory."""
        weights = open_weights(model, settings)
        self._processor: Any = BarkProcessor.from_pretrained(weights.folder)
        network: Any = BarkModel.from_pretrained(weights.folder, dtype=weights.dtype, **weights.arguments)
        self._network = network.to(weights.device).eval()
        stages = network.generation_config
        self._sample_rate = int(stages.sample_rate)
        self._semantic = BarkSemanticGenerationConfig(**stages.semantic_config)
        self._coarse = BarkCoarseGenerationConfig(**stages.coarse_acoustics_config)
        self._fine = BarkFineGenerationConfig(**stages.fine_acoustics_config)

    def generate(self, request: SpeechRequest, seed: int, run: Run) -> Result:
        """Emit a `Sound` a sentence.

        Raises:
            InvalidRequest: the voice is none of the checkpoint's presets.
            GenerationFailed: the model said nothing, or its numbers overflowed.
        """
        history = self._preset(request.voice)
        sentences = split_sentences(request.input)
        torch.manual_seed(seed)  # Bark draws from the global generator; the engine's thread is the only one that draws
        num_samples = 0
        for number, sentence in enumerate(sentences):
            with torch.inference_mode():
                samples, history = self._say(sentence, history, run, (number, len(sentences)))
            if len(samples):
                run.emit(Sound(finite(samples.float().cpu().numpy()), self._sample_rate))
            num_samples += len(samples)
            run.advance(number + 1, len(sentences))
        if not num_samples:
            raise GenerationFailed("the model said nothing; try another text or seed")
        return Result({"input_characters": len(request.input), "output_samples": num_samples})

    def _preset(self, voice: str | None) -> History | None:
        # An unknown name would be opened as a file by the library.
        if voice is None:
            return None
        presets = self._processor.available_voice_presets
        if voice not in presets:
            raise InvalidRequest(f"there is no voice '{voice}'; choose one of: {', '.join(presets)}", param="voice")
        return dict(self._processor("a", voice_preset=voice)["history_prompt"].to(self._network.device))

    def _say(
        self, sentence: str, history: History | None, run: Run, progress: tuple[int, int]
    ) -> tuple[torch.Tensor, History | None]:
        """Return the samples of a sentence, none where the model keeps silent, and the voice for the next."""
        network = self._network
        inputs = self._processor(sentence, truncation=True).to(network.device)
        watch = StoppingCriteriaList([TokenWatch(run, *progress)])
        semantic = network.semantic.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            history_prompt=history,
            semantic_generation_config=self._semantic,
            stopping_criteria=watch,
        )
        spoken = semantic[0][semantic[0] != self._semantic.semantic_pad_token]  # which is also the end mark
        if not len(spoken):
            return spoken, history
        configs: dict[str, Any] = {
            "history_prompt": history,
            "semantic_generation_config": self._semantic,
            "coarse_generation_config": self._coarse,
            "codebook_size": network.generation_config.codebook_size,
        }
        coarse = network.coarse_acoustics.generate(semantic.clone(), **configs, stopping_criteria=watch)
        run.advance(*progress)
        fine = network.fine_acoustics.generate(coarse, **configs, fine_generation_config=self._fine)
        run.advance(*progress)
        samples = network.codec_decode(fine)[0]
        return samples, {"semantic_prompt": spoken, "coarse_prompt": fine[0, :2], "fine_prompt": fine[0]}
