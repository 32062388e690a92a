"""Llama-style chat with transformers' own `generate`; knows no HTTP."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TextStreamer

from services.engine.generation import Run
from services.engine.outputs import overflowed
from services.engine.stepper import Result
from services.engine.weights import open_weights
from services.errors import InvalidRequest
from services.registry import Model
from services.settings import Settings
from services.text.schema import ChatJob

COLDEST = 1e-3  # below this temperature the likeliest token is as good as certain, and dividing by it overflows


class NumberCheck(LogitsProcessor):
    """Stops at scores that are no numbers: the likeliest of them would be any token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`."""
        if scores.isnan().any():
            raise overflowed()
        return scores


class TokenStream(TextStreamer):
    """Hands text on as soon as its words are whole, and lets the run stop generation at any token."""

    def __init__(self, tokenizer: Any, run: Run, max_tokens: int) -> None:
        """Follow one generation of at most `max_tokens` tokens."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._run = run
        self._max_tokens = max_tokens
        self.num_tokens = 0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token a call."""
        is_prompt = self.next_tokens_are_prompt
        super().put(value)
        if not is_prompt:
            self.num_tokens += 1
            self._run.advance(self.num_tokens, self._max_tokens)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Emit what will not change any more."""
        if text:
            self._run.emit(text)


class TextGenerator:
    """One chat model; loaded when it is made."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Bring tokenizer and weights into memory."""
        weights = open_weights(model, settings)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(weights.folder)
        network: Any = AutoModelForCausalLM.from_pretrained(weights.folder, dtype=weights.dtype, **weights.arguments)
        self._network = network.to(weights.device).eval()
        self._context = int(self._network.config.max_position_embeddings)

    def generate(self, request: ChatJob, seed: int, run: Run) -> Result:
        """Emit the next message of the chat, piece by piece.

        Raises:
            InvalidRequest: the chat does not fit into the model's context.
            GenerationFailed: the model's numbers overflowed.
        """
        inputs = self._encode(request)
        room = self._context - inputs["input_ids"].shape[1]
        if room < 1:
            raise InvalidRequest(
                f"the chat takes {inputs['input_ids'].shape[1]} tokens and the model's context holds {self._context}, "
                "the answer included; shorten it",
                param="messages",
                code="context_length_exceeded",
            )
        max_tokens = min(request.max_tokens, room)
        stream = TokenStream(self._tokenizer, run, max_tokens)
        torch.manual_seed(seed)  # the engine's thread is the only one that draws
        with torch.inference_mode():
            tokens = self._network.generate(
                **inputs,
                **sampling(request),
                max_new_tokens=max_tokens,
                max_length=None,
                logits_processor=LogitsProcessorList([NumberCheck()]),
                streamer=stream,
            )
        ended = int(tokens[0, -1]) in self._end_tokens
        usage = {"prompt_tokens": inputs["input_ids"].shape[1], "completion_tokens": stream.num_tokens}
        return Result(usage, "stop" if ended else "length")

    @property
    def _end_tokens(self) -> set[int]:
        end = self._network.generation_config.eos_token_id
        return set(end) if isinstance(end, list) else {end}

    def _encode(self, request: ChatJob) -> Any:
        chat = [message.model_dump() for message in request.messages]
        if chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": request.system_prompt})
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, return_tensors="pt", add_special_tokens=False).to(self._network.device)


def sampling(request: ChatJob) -> dict[str, Any]:
    """What `generate` is told about choosing tokens; temperature 0 is greedy."""
    if request.temperature < COLDEST:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
    }
