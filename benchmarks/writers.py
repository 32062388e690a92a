"""One way to write text, in a process of its own: `python -m benchmarks.writers NAME`, asked by lines of JSON.

Each line of input is `{"prompts": [{"text": ..., "tokens": [...]}], "num_new": ...}`, of prompts that come together.
The answer is `{"seconds": ..., "num_tokens": ..., "tokens": ...}`; a line `ready` comes first.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.llama import FOLDER, SHAPE, adapter, build, data_dir

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))

Write = Callable[[Sequence[Mapping[str, Any]], int], list[list[int]]]


@dataclass
class Listener:
    """What a stepper tells of a request."""

    tokens: list[int] = field(default_factory=list)

    def emit(self, data: Any) -> None:
        """Nobody reads it."""

    def count(self, **units: float) -> None:
        """Nobody pays."""

    def advance(self, step: int, steps: int) -> None:
        """Nobody counts it."""

    def sketch(self, make: Callable[[], Any]) -> None:
        """Nobody looks."""


def ours(packing: str, *, is_mixed: bool = False) -> Write:
    """Return our loop: the stepper, without engine and server.

    Args:
        packing: of linear layers; what has no such setting is the model's entry's to say.
        is_mixed: whether there are two adapters, and prompts ask for one, the other and none in turns.
    """
    from services.registry import Model, load_models
    from services.schema import complete
    from services.settings import Settings
    from services.text.engine import TextStepper
    from services.text.schema import CompletionJob, CompletionRequest

    settings = Settings(data_dir=data_dir(), device="cpu", prefix_cache_mb=0, max_batch_size=16)
    if packing == "int4":
        entry: dict[str, Any] = {"quantisation": packing}
    else:
        settings, entry = settings.model_copy(update={"text_packing": packing}), {}
    names: list[str | None] = [None]
    if is_mixed:
        names += ("one", "other")
        entry["adapters"] = [{"name": name, "folder": {"path": adapter(str(name))}} for name in names[1:]]
    found = next(model for model in load_models(profile="hub") if model.task == "text")
    model = Model.model_validate({**found.model_dump(), **entry})
    stepper = TextStepper(model, settings)

    def write(prompts: Sequence[Mapping[str, Any]], num_new: int) -> list[list[int]]:
        found: list[list[int]] = []
        waiting = []
        for place, prompt in enumerate(prompts, start=1):
            name = names[place % len(names)]
            request = CompletionRequest(prompt=prompt["text"], max_tokens=num_new, temperature=0, adapter=name)
            job = complete(CompletionJob, request, {"model": model.id, **model.defaults_in("tiny")})
            waiting.append(stepper.admit(job, 0, Listener()))
            found.append([])
        everyone = list(waiting)
        readings = [state.readings[0] for state in waiting]
        while waiting:
            for key in sorted({stepper.key(state) for state in waiting}, reverse=True):
                states = [state for state in waiting if stepper.key(state) == key]
                rows = stepper.forward(states)
                for state, row in zip(states, rows, strict=True):
                    if stepper.advance(state, row) is not None:
                        waiting.remove(state)
                    number = everyone.index(state)
                    if row is not None and readings[number].answers:
                        found[number].append(readings[number].answers[0].token)
        return found

    return write


def pipeline(dtype: str) -> Write:
    """Return the library's pipeline, loaded once and called for one after the other."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    call: Any = transformers.pipeline("text-generation", model=str(FOLDER), dtype=getattr(torch, dtype))

    def write(prompts: Sequence[Mapping[str, Any]], num_new: int) -> list[list[int]]:
        made = []
        for prompt in prompts:
            answer = call(prompt["text"], max_new_tokens=num_new, do_sample=False, return_tensors=True)
            made.append(answer[0]["generated_token_ids"][len(prompt["tokens"]) :])
        return made

    return write


def llama_cpp(kind: str) -> Write:
    """Return llama.cpp, one sequence a prompt, all in a batch; runs in the peers' environment."""
    import llama_cpp
    import numpy as np

    path = gguf(kind)
    llama_cpp.llama_log_set(_silent(llama_cpp), None)
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 8192, 512, 512, 8
    params.n_threads = params.n_threads_batch = THREADS
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(512, 0, 1)

    def decode(feeds: Sequence[tuple[int, int, Sequence[int]]]) -> list[int]:
        """Run (sequence, position, tokens), and return each one's likeliest next token."""
        count, lasts = 0, []
        for sequence, position, tokens in feeds:
            for offset, token in enumerate(tokens):
                batch.token[count], batch.pos[count] = token, position + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = offset == len(tokens) - 1
                count += 1
            lasts.append(count - 1)
        batch.n_tokens = count
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama.cpp cannot decode")
        return [
            int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, last), (SHAPE["vocab_size"],)).argmax())
            for last in lasts
        ]

    def write(prompts: Sequence[Mapping[str, Any]], num_new: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        lengths = [len(prompt["tokens"]) for prompt in prompts]
        made = [[token] for token in decode([(i, 0, prompt["tokens"]) for i, prompt in enumerate(prompts)])]
        for step in range(num_new - 1):
            for row, token in zip(
                made, decode([(i, lengths[i] + step, [row[-1]]) for i, row in enumerate(made)]), strict=True
            ):
                row.append(token)
        return made

    return write


def _silent(llama_cpp: Any) -> Any:
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    _silent.kept = silent  # type: ignore[attr-defined]  the library keeps none itself
    return silent


def gguf(kind: str) -> Path:
    """Return the model as llama.cpp reads it, written if it is missing: `F16`, `BF16` or `Q8_0`."""
    import gguf as library
    from safetensors import safe_open

    path = FOLDER.parents[2] / f"llama-{kind}.gguf"
    if path.exists():
        return path
    writer = library.GGUFWriter(path.with_suffix(".partial"), "llama")
    heads, kv_heads = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(SHAPE["hidden_size"] // heads)
    writer.add_vocab_size(SHAPE["vocab_size"])
    writer.add_tokenizer_model("none")
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    quantized = library.GGMLQuantizationType[kind]
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        for full in file.keys():  # noqa: SIM118  no mapping
            tensor = file.get_tensor(full).float().numpy()
            name = full.removesuffix(".weight")
            if name in outer:
                target = outer[name]
            else:
                _, _, layer, part = name.split(".", 3)
                target = f"blk.{layer}.{names[part]}"
                if part in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp rotates neighbours, the library halves
                    num = heads if "q_proj" in part else kv_heads
                    width = tensor.shape[0] // num
                    tensor = tensor.reshape(num, 2, width // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
            if tensor.ndim == 1:
                writer.add_tensor(f"{target}.weight", tensor)
            else:
                data = library.quants.quantize(tensor, quantized)
                writer.add_tensor(f"{target}.weight", data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".partial").rename(path)


WRITERS: Mapping[str, Callable[[], Write]] = MappingProxyType(
    {
        "ours-float32": lambda: ours("none"),
        "ours-float16": lambda: ours("float16"),
        "ours-int8": lambda: ours("int8"),
        "ours-int4": lambda: ours("int4"),
        "ours-float16-mixed": lambda: ours("float16", is_mixed=True),
        "ours-int4-mixed": lambda: ours("int4", is_mixed=True),
        "pipeline-bfloat16": lambda: pipeline("bfloat16"),
        "pipeline-float32": lambda: pipeline("float32"),
        "llama.cpp-F16": lambda: llama_cpp("F16"),
        "llama.cpp-BF16": lambda: llama_cpp("BF16"),
        "llama.cpp-Q8_0": lambda: llama_cpp("Q8_0"),
    }
)


def main() -> None:
    """Load, and write what is asked for."""
    build()
    name = sys.argv[1]
    if not name.startswith("llama.cpp"):
        import torch

        torch.set_num_threads(THREADS)
    write = WRITERS[name]()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        tokens = write(asked["prompts"], asked["num_new"])
        seconds = time.perf_counter() - began
        answers.write(json.dumps({"seconds": seconds, "num_tokens": sum(map(len, tokens)), "tokens": tokens}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
