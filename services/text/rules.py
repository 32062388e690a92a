"""Which tokens a checkpoint's makers let nobody choose, or seldom: their `generation_config.json`, by the library."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation import logits_process as library

from services.text.sampling import Rule

IGNORED = {  # by name what changes nothing; all else of these would change texts, and is not served
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "stop_strings": None,
    "remove_invalid_values": False,
}

logger = logging.getLogger("atelier.text")


class Rules:
    """The rules of one checkpoint; those of the library's that `generate` would apply, in its order."""

    def __init__(self, generation: Any, ends: Sequence[int]) -> None:
        """Read a generation config; what it asks for in vain is logged.

        Args:
            generation: the checkpoint's.
            ends: tokens that end a text.
        """
        self._config = generation
        self._ends: Any = torch.tensor(list(ends)) if ends else None
        ignored = [name for name, nothing in IGNORED.items() if getattr(generation, name, None) not in (None, nothing)]
        if ignored:
            logger.warning("generation_config.json: %s: not served, and not used", ", ".join(ignored))

    def begin(self, prompt_length: int, limit: int) -> Rule | None:
        """Return the rules for an answer of at most `limit` tokens behind a prompt of so many; mostly none."""
        config, ends = self._config, self._ends
        bos, eos, decay = (
            config.forced_bos_token_id,
            config.forced_eos_token_id,
            config.exponential_decay_length_penalty,
        )
        first = prompt_length + (prompt_length == 1 and bos is not None)
        known: list[tuple[Any, Callable[[], Rule]]] = [
            (config.sequence_bias, lambda: library.SequenceBiasLogitsProcessor(config.sequence_bias)),
            (
                config.repetition_penalty not in (None, 1),
                lambda: library.RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty)),
            ),
            (config.no_repeat_ngram_size, lambda: library.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)),
            (config.bad_words_ids, lambda: library.NoBadWordsLogitsProcessor(config.bad_words_ids, ends)),
            (ends is not None and config.min_length, lambda: library.MinLengthLogitsProcessor(config.min_length, ends)),
            (
                ends is not None and config.min_new_tokens,
                lambda: library.MinNewTokensLengthLogitsProcessor(prompt_length, config.min_new_tokens, ends),
            ),
            (bos is not None, lambda: library.ForcedBOSTokenLogitsProcessor(bos)),
            (eos is not None, lambda: library.ForcedEOSTokenLogitsProcessor(prompt_length + limit, eos)),
            (
                ends is not None and decay,
                lambda: library.ExponentialDecayLengthPenalty(tuple(decay), ends, prompt_length),
            ),
            (config.suppress_tokens, lambda: library.SuppressTokensLogitsProcessor(config.suppress_tokens)),
            (
                config.begin_suppress_tokens,
                lambda: library.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, first),
            ),
        ]
        made: Any = library.LogitsProcessorList(make() for is_set, make in known if is_set)
        return made or None
